#include "record.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>

static jmp_buf bug_landing;

_Noreturn void shim_bug(void)
{
    longjmp(bug_landing, 1);
}

static const char *const algo_names[ALGOS] = {
    NULL, "first_fit", "best_fit", "first_fit_order_align", "first_fit_align", "fixed",
};

static const genpool_algo_t algo_calls[ALGOS] = {
    NULL, gen_pool_first_fit, gen_pool_best_fit, gen_pool_first_fit_order_align,
    gen_pool_first_fit_align, gen_pool_fixed_alloc,
};

uint64_t lines;

uint64_t granule(const struct run *run)
{
    return 1ULL << run->order;
}

uint64_t round_up(const struct run *run, uint64_t size)
{
    return (size + granule(run) - 1) & ~(granule(run) - 1);
}

static void begin(const char *op, const struct run *run)
{
    printf("{\"op\":\"%s\",\"pool\":\"%s\"", op, run->name);
}

static void want_text(const char *answer)
{
    printf(",\"want\":%s}\n", answer);
    lines++;
}

static void want_number(uint64_t answer)
{
    printf(",\"want\":%" PRIu64 "}\n", answer);
    lines++;
}

void open_pool(struct run *run, const char *name, unsigned int order)
{
    memset(run, 0, sizeof(*run));
    snprintf(run->name, sizeof(run->name), "%s", name);
    run->order = order;
    run->weights[DEFAULT] = 100;
    run->fill = 60;
    run->pool = gen_pool_create((int)order, -1);
    if (!run->pool)
        abort();
    begin("create", run);
    printf(",\"order\":%u", order);
    want_text("\"ok\"");
}

void add_chunk(struct run *run, uint64_t base, uint64_t size)
{
    if (run->chunk_count == CHUNKS_MAX || gen_pool_add(run->pool, base, size, -1) != 0)
        abort();
    run->chunks[run->chunk_count].base = base;
    run->chunks[run->chunk_count++].size = size;
    begin("add", run);
    printf(",\"base\":\"0x%" PRIx64 "\",\"size\":%" PRIu64, base, size);
    want_text("\"ok\"");
}

void set_algo(struct run *run, enum algo algo)
{
    gen_pool_set_algo(run->pool, algo_calls[algo], NULL);
    begin("algo", run);
    printf(",\"algo\":\"%s\"", algo_names[algo]);
    want_text("\"ok\"");
}

void ask_avail(const struct run *run)
{
    begin("avail", run);
    want_number(gen_pool_avail(run->pool));
}

void ask_size(const struct run *run)
{
    begin("size", run);
    want_number(gen_pool_size(run->pool));
}

void ask_has_addr(const struct run *run, uint64_t addr, uint64_t size)
{
    begin("has_addr", run);
    printf(",\"addr\":\"0x%" PRIx64 "\",\"size\":%" PRIu64, addr, size);
    want_text(gen_pool_has_addr(run->pool, addr, size) ? "true" : "false");
}

uint64_t alloc(struct run *run, uint64_t size, enum algo algo, uint64_t extra)
{
    struct genpool_data_align align = { .align = (int)extra };
    struct genpool_data_fixed fixed = { .offset = extra };
    uint64_t addr;

    if (algo == DEFAULT)
        addr = gen_pool_alloc(run->pool, size);
    else
        addr = gen_pool_alloc_algo(run->pool, size, algo_calls[algo],
                                   algo == ALIGN ? (void *)&align :
                                   algo == FIXED ? (void *)&fixed : NULL);
    begin("alloc", run);
    printf(",\"size\":%" PRIu64, size);
    if (algo != DEFAULT)
        printf(",\"algo\":\"%s\"", algo_names[algo]);
    if (algo == ALIGN)
        printf(",\"align\":%" PRIu64, extra);
    if (algo == FIXED)
        printf(",\"offset\":%" PRIu64, extra);
    if (addr == 0) {
        want_text("null");
        return 0;
    }
    printf(",\"want\":\"0x%" PRIx64 "\"}\n", addr);
    lines++;
    if (run->live_count == run->live_room) {
        run->live_room = run->live_room * 2 + 64;
        run->live = realloc(run->live, run->live_room * sizeof(*run->live));
        if (!run->live)
            abort();
    }
    run->live[run->live_count++] = (struct live){ addr, size };
    return addr;
}

bool give_back(struct run *run, uint64_t addr, uint64_t size)
{
    begin("free", run);
    printf(",\"addr\":\"0x%" PRIx64 "\",\"size\":%" PRIu64, addr, size);
    if (setjmp(bug_landing) != 0) {
        want_text("\"BUG\"");
        return false;
    }
    gen_pool_free(run->pool, addr, size);
    want_text("\"ok\"");
    return true;
}

void destroy(struct run *run)
{
    begin("destroy", run);
    if (setjmp(bug_landing) == 0) {
        gen_pool_destroy(run->pool);
        want_text("\"ok\"");
    } else {
        want_text("\"BUG\"");
    }
    free(run->live);
    run->live = NULL;
}

struct gen_pool_chunk *chunk_of(const struct run *run, uint64_t addr)
{
    struct gen_pool_chunk *chunk;

    list_for_each_entry_rcu(chunk, &run->pool->chunks, next_chunk)
        if (addr >= chunk->start_addr && addr <= chunk->end_addr)
            return chunk;
    return NULL;
}

uint64_t granules_of(const struct run *run, const struct gen_pool_chunk *chunk)
{
    return (chunk->end_addr - chunk->start_addr + 1) >> run->order;
}

uint64_t taken_from(const struct run *run, uint64_t addr, uint64_t most)
{
    const struct gen_pool_chunk *chunk = chunk_of(run, addr);
    uint64_t first = (addr - chunk->start_addr) >> run->order;
    uint64_t end = min(first + most, granules_of(run, chunk));

    if (first >= end)
        return 0;
    return find_next_zero_bit(chunk->bits, end, first) - first;
}

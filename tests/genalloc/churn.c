#include "churn.h"
#include "dice.h"

uint64_t bytes_for(const struct run *run, uint64_t granules)
{
    uint64_t size = granules << run->order;
    return chance(50) ? size : size - below(granule(run));
}

static uint64_t alloc_size(const struct run *run, uint64_t cap)
{
    uint64_t dice = below(1000);

    if (dice < 3)
        return 0;
    if (dice < 6)
        return gen_pool_avail(run->pool) + below(3) - 1;
    if (dice < 8)
        return run->chunks[below(run->chunk_count)].size;
    if (dice == 8)
        return (1ULL << (40 + below(18))) + below(2);
    if (run->odd && dice < 60)
        return round_up(run, run->chunks[below(run->chunk_count)].size) + below(3) - 1;
    if (dice < 400)
        return granule(run);
    if (dice < 550)
        return 1 + below(granule(run));
    return bytes_for(run, any_magnitude(cap));
}

static uint64_t fixed_offset(const struct run *run, uint64_t size)
{
    unsigned int which = (unsigned int)below(run->chunk_count);
    uint64_t room = run->chunks[which].size, g = granule(run), dice = below(100);

    if (run->live_count != 0 && dice < 45) {
        const struct live *near = &run->live[below(run->live_count)];
        const struct gen_pool_chunk *chunk = chunk_of(run, near->addr);
        uint64_t offset = near->addr - chunk->start_addr;

        if (dice < 20)
            return offset + round_up(run, near->size);
        if (dice < 35 && offset >= round_up(run, size))
            return offset - round_up(run, size);
        return offset;
    }
    if (dice < 53) {
        uint64_t end = room & ~(g - 1), need = round_up(run, size);
        uint64_t at = end > need ? end - need : 0;
        return at + (below(3) == 0 ? g : 0);
    }
    if (dice < 56)
        return room + below(4) * g;
    if (dice < 60)
        return below(room + 1);
    return below((room >> run->order) + 1) << run->order;
}

void one_alloc(struct run *run, uint64_t cap)
{
    uint64_t size = alloc_size(run, cap), extra = 0;
    unsigned int dice = (unsigned int)below(100);
    enum algo algo = DEFAULT;

    while (algo + 1 < ALGOS && dice >= run->weights[algo]) {
        dice -= run->weights[algo];
        algo++;
    }
    if (algo == ALIGN) {
        /* It is a C int: values above 2^30 are covered by 90_quirks. */
        extra = 1ULL << (chance(70) ? below(run->order + 10) : below(31));
        extra = min(extra, 1ULL << 30);
    }
    if (algo == FIXED)
        extra = fixed_offset(run, size);
    alloc(run, size, algo, extra);
}

static size_t pick_live(const struct run *run)
{
    uint64_t dice = below(100);

    if (dice < 15)
        return run->live_count - 1 - below(min(run->live_count, 8));
    if (dice < 25)
        return below(min(run->live_count, 64));
    return below(run->live_count);
}

static void forget(struct run *run, size_t which)
{
    run->live[which] = run->live[--run->live_count];
}

/* Frees part of an allocation, or a range across several adjacent ones. */
static void partial_free(struct run *run)
{
    size_t which = pick_live(run);
    struct live found = run->live[which];
    struct gen_pool_chunk *chunk = chunk_of(run, found.addr);
    uint64_t held = round_up(run, found.size) >> run->order;
    uint64_t skip = chance(50) ? 0 : below(held), most, count, size, delta;

    if (skip == 0)
        forget(run, which);
    found.addr += skip << run->order;
    most = taken_from(run, found.addr, chance(30) ? 4 * held + 2 : held - skip);
    if (most == 0)
        return;
    count = chance(50) ? most : 1 + below(most);
    if (skip == 0 && count < held && taken_from(run, found.addr + (count << run->order), 1))
        run->live[run->live_count++] = (struct live){
            found.addr + (count << run->order), (held - count) << run->order };
    size = bytes_for(run, count);
    /* Only the granule of the address matters, and only the raw end is checked. */
    delta = chance(15) ? below(granule(run)) : 0;
    if (found.addr + delta + size - 1 > chunk->end_addr)
        delta = 0;
    if (!give_back(run, found.addr + delta, size))
        abort();
}

void one_free(struct run *run)
{
    size_t which;
    struct live found;

    if (run->partial && chance(60)) {
        partial_free(run);
        return;
    }
    which = pick_live(run);
    found = run->live[which];
    forget(run, which);
    if (run->partial) {
        /* The rest of it remains, which may be empty. */
        uint64_t held = taken_from(run, found.addr, round_up(run, found.size) >> run->order);
        if (held == 0)
            return;
        found.size = min(found.size, held << run->order);
    }
    if (chance(10))
        found.size = bytes_for(run, round_up(run, found.size) >> run->order);
    if (!give_back(run, found.addr, found.size))
        abort();
}

void one_question(struct run *run)
{
    unsigned int which = (unsigned int)below(run->chunk_count);
    uint64_t base = run->chunks[which].base, size = run->chunks[which].size;
    uint64_t dice = below(100), at;

    if (dice < 50) {
        ask_avail(run);
        return;
    }
    if (dice < 60) {
        ask_size(run);
        return;
    }
    if (dice < 65 && size != 0) {
        if (!give_back(run, base + below(size), 0))
            abort();
        return;
    }
    at = dice < 80 ? base + below(size) : base + (chance(50) ? size : 0) + below(5) - 2;
    /* It is not 2^64 - 1 if the size is 0: genalloc's sum wraps, and it returns true. */
    ask_has_addr(run, at, chance(50) ? below(3) : chance(50) ? size + below(size ? 3 : 2) - !!size
                                                             : any_magnitude(size + 1));
}

/* Allocates single granules in a row and frees every other one. */
static void comb(struct run *run, uint64_t teeth)
{
    size_t first = run->live_count, i;

    for (; teeth != 0; teeth--)
        if (alloc(run, bytes_for(run, 1), FIRST_FIT, 0) == 0)
            break;
    /* From the end: the entry that replaces a removed one has been visited. */
    for (i = run->live_count; i >= first + 2; i -= 2) {
        struct live found = run->live[i - 1];
        forget(run, i - 1);
        if (!give_back(run, found.addr, found.size))
            abort();
    }
}

void churn(struct run *run, uint64_t ops)
{
    uint64_t end = lines + ops, largest = 0, total = gen_pool_size(run->pool);
    unsigned int i;

    for (i = 0; i < run->chunk_count; i++)
        if (run->chunks[i].size > largest)
            largest = run->chunks[i].size;
    largest >>= run->order;
    while (lines < end) {
        uint64_t phase_end = lines + 1 + any_magnitude(ops / 8 + 1);
        /* The largest size of a phase: at most an eighth of the largest chunk, mostly much less. */
        uint64_t cap = any_magnitude(chance(20) ? largest / 8 + 1 : largest / 4096 + 8);
        unsigned int growth = (unsigned int)(30 + below(66));

        if (phase_end > end)
            phase_end = end;
        if (chance(5))
            comb(run, min(ops / 20 + 1, 1 + below(4000)));
        while (lines < phase_end) {
            uint64_t used = total - gen_pool_avail(run->pool);
            /* A division would overflow for large totals. */
            bool full = used / 100 >= total / 10000 * run->fill + total % 10000 / 100;

            if (chance(2))
                one_question(run);
            else if (run->live_count == 0 || (!full && chance(growth)) || (full && chance(30)))
                one_alloc(run, cap);
            else
                one_free(run);
        }
    }
}

void drain(struct run *run)
{
    struct gen_pool_chunk *chunk;

    ask_avail(run);
    while (!run->partial && run->live_count != 0) {
        size_t which = below(run->live_count);
        struct live found = run->live[which];
        forget(run, which);
        if (!give_back(run, found.addr, found.size))
            abort();
    }
    list_for_each_entry_rcu(chunk, &run->pool->chunks, next_chunk) {
        uint64_t bits = granules_of(run, chunk), at = find_next_bit(chunk->bits, bits, 0);
        while (at < bits) {
            uint64_t next = find_next_zero_bit(chunk->bits, bits, at);
            uint64_t count = chance(50) ? next - at : 1 + below(next - at);
            if (!give_back(run, chunk->start_addr + (at << run->order), bytes_for(run, count)))
                abort();
            at = find_next_bit(chunk->bits, bits, at + count);
        }
    }
    ask_avail(run);
    ask_size(run);
    destroy(run);
}

/*
 * Records traces of Linux's lib/genalloc.c, linked into this program, for
 * `mkvmm replay`: one JSON operation per line, with its result.
 *
 *     driver FAMILY SEED POOL_BYTES OPS ORDER >TRACE
 *
 * FAMILY is the number of a family of traces (1 to 9, see families below),
 * ORDER the granule of its large pool. It prints about OPS lines, then those that
 * empty the pools. The same arguments give the same lines, and the requests depend
 * on the results only through what is allocated.
 *
 * scripts/genalloc-traces builds it, and fetches genalloc. dice.h has the random
 * numbers, record.h the calls, churn.h the requests, this file the families.
 */
#include "churn.h"
#include "dice.h"

#include <stdio.h>

#define PAGE_ORDER 12

struct plan {
    uint64_t pool, ops;
    unsigned int order;
};

/* Returns the address of a granule, low or in the kernel's half of the address space. */
static uint64_t any_base(unsigned int order)
{
    uint64_t base = chance(20) ? 0xffff800000000000 : 0x100000000;
    return base + (chance(50) ? 0 : below(1 << 16) << order);
}

static void mix(struct run *run, unsigned int first, unsigned int best, unsigned int order_align,
                unsigned int align, unsigned int fixed)
{
    run->weights[FIRST_FIT] = first;
    run->weights[BEST_FIT] = best;
    run->weights[ORDER_ALIGN] = order_align;
    run->weights[ALIGN] = align;
    run->weights[FIXED] = fixed;
    run->weights[DEFAULT] = 100 - first - best - order_align - align - fixed;
}

static enum algo any_default(void)
{
    return (enum algo)(FIRST_FIT + below(3));
}

/* 01: one chunk, first fit. */
static void first_fit(const struct plan *plan)
{
    struct run run;

    open_pool(&run, "p", plan->order);
    add_chunk(&run, any_base(plan->order), plan->pool);
    churn(&run, plan->ops);
    drain(&run);
}

/* 02: best fit by default, then first fit with best fit on request. */
static void best_fit(const struct plan *plan)
{
    struct run run;

    open_pool(&run, "p", plan->order);
    add_chunk(&run, any_base(plan->order), plan->pool);
    set_algo(&run, BEST_FIT);
    churn(&run, plan->ops / 2);
    set_algo(&run, FIRST_FIT);
    mix(&run, 0, 60, 0, 0, 0);
    churn(&run, plan->ops / 4);
    set_algo(&run, BEST_FIT);
    churn(&run, plan->ops / 4);
    drain(&run);
}

/* 03, 04, 05: the large pool, then small ones with other granules and bases. */
static void one_algo(const struct plan *plan, enum algo algo)
{
    static const unsigned int orders[] = { 12, 16, 9, 21, 3 };
    struct run run;
    char name[16];
    unsigned int i;

    for (i = 0; i <= sizeof(orders) / sizeof(*orders); i++) {
        unsigned int order = i == 0 ? plan->order : orders[i - 1];
        uint64_t size = i == 0 ? plan->pool : (1 + below(20000)) << order;
        uint64_t base = any_base(PAGE_ORDER);

        snprintf(name, sizeof(name), "s%u", i);
        open_pool(&run, name, order);
        /* If the base is not on a granule, aligned results are off by the same amount, also in Linux. */
        if (chance(30))
            base += below(granule(&run));
        add_chunk(&run, base, size);
        if (i % 2 == 1)
            add_chunk(&run, base + size + (below(5) << order), size / 2 + 1);
        if (algo == ORDER_ALIGN && chance(50)) {
            set_algo(&run, ORDER_ALIGN);
        } else {
            run.weights[DEFAULT] = 15;
            run.weights[algo] = 85;
        }
        churn(&run, i == 0 ? plan->ops * 6 / 10 : plan->ops * 8 / 100);
        drain(&run);
    }
}

static void first_fit_align(const struct plan *plan)
{
    one_algo(plan, ALIGN);
}

static void fixed_places(const struct plan *plan)
{
    one_algo(plan, FIXED);
}

static void order_align(const struct plan *plan)
{
    one_algo(plan, ORDER_ALIGN);
}

/* 06: chunks of all sizes, adjacent or not, some added while in use, all algorithms. */
static void multi_chunk(const struct plan *plan)
{
    struct run run;
    uint64_t at, left = plan->pool;
    unsigned int part, parts = 12, i;

    open_pool(&run, "p", plan->order);
    at = any_base(plan->order);
    for (part = 0; part < parts; part++) {
        unsigned int chunks = 1 + (unsigned int)below(4);
        for (i = 0; i < chunks; i++) {
            uint64_t size = part + 1 == parts && i + 1 == chunks
                                ? left
                                : (1 + below((left >> run.order) / 4)) << run.order;
            if (chance(40))
                at += below(1 << 20) << run.order;
            add_chunk(&run, at, size);
            at += size;
            left -= size;
        }
        set_algo(&run, any_default());
        mix(&run, 15, 15, 10, 20, 15);
        churn(&run, plan->ops / parts);
    }
    drain(&run);
}

/*
 * A pool that ends in BUG: some use of it, then one free, or the destruction, at
 * which the kernel would stop. Some of these calls turn out to be allowed; the result
 * is always recorded, and the pool is not used after a BUG.
 */
static void doomed(unsigned int number)
{
    static const unsigned int orders[] = { 3, 6, 12, 16 };
    struct run run;
    struct live *some;
    char name[16];
    uint64_t base, g, size;
    unsigned int i;
    bool alive = true;

    snprintf(name, sizeof(name), "b%u", number);
    open_pool(&run, name, orders[below(4)]);
    g = granule(&run);
    base = any_base(run.order) + (chance(30) ? below(g) : 0);
    size = ((3 + below(60)) << run.order) + (chance(50) ? below(g) : 0);
    add_chunk(&run, base, size);
    add_chunk(&run, base + size + (chance(50) ? g : 0), size);
    for (i = 0; i < 12; i++)
        one_alloc(&run, 6);
    if (run.live_count == 0)
        alloc(&run, 1, FIRST_FIT, 0);
    some = &run.live[below(run.live_count)];
    switch (below(7)) {
    case 0: /* twice */
        alive = give_back(&run, some->addr, some->size) && give_back(&run, some->addr, some->size);
        break;
    case 1: /* outside */
        alive = give_back(&run, chance(50) ? base - 1 - below(4096) : base + 4 * size, below(2));
        break;
    case 2: /* longer than the allocation */
        alive = give_back(&run, some->addr, some->size + g + below(8 * g));
        break;
    case 3: /* beyond the raw end */
        alive = give_back(&run, some->addr, size);
        break;
    case 4: /* in the tail, or the granule before it */
        alive = give_back(&run, base + size - 1 - below(g), 1 + below(2));
        break;
    case 5: /* anywhere */
        alive = give_back(&run, base + below(2 * size), 1 + below(2 * g));
        break;
    default: /* still in use */
        break;
    }
    if (alive)
        destroy(&run);
    else
        free(run.live);
}

/* 07: frees of parts and of several allocations at once, every default; pools that end in BUG. */
static void partial_frees(const struct plan *plan)
{
    static const unsigned int orders[] = { 0, 12, 16, 6 };
    struct run run;
    char name[16];
    unsigned int i;

    for (i = 0; i < 4; i++) {
        unsigned int order = i == 0 ? plan->order : orders[i];
        uint64_t size = i == 0 ? plan->pool : (1 + below(1 << 16)) << order;

        snprintf(name, sizeof(name), "p%u", i);
        open_pool(&run, name, order);
        add_chunk(&run, any_base(order), size);
        if (i != 0)
            add_chunk(&run, run.chunks[0].base + size, size / 2 + 1);
        set_algo(&run, any_default());
        mix(&run, 10, 10, 10, 15, 10);
        run.partial = true;
        churn(&run, i == 0 ? plan->ops * 6 / 10 : plan->ops / 10);
        drain(&run);
    }
    for (i = 0; i < plan->ops / 200; i++)
        doomed(i);
}

/* 08: sizes and bases that are not multiples of a granule, tails, chunks without a granule. */
static void odd_sizes(const struct plan *plan)
{
    static const unsigned int orders[] = { 12, 5, 13, 0, 16, 1, 12, 21 };
    static const uint64_t some[] = { 10000, 4095, 4096, 4097, 1, 8191, 0, 70000, 1234567 };
    struct run run;
    char name[16];
    unsigned int i, j;

    for (i = 0; i <= 8; i++) {
        unsigned int order = i == 0 ? plan->order : orders[i - 1];
        uint64_t at = any_base(PAGE_ORDER) + below(1 << 16), size;

        snprintf(name, sizeof(name), "z%u", i);
        open_pool(&run, name, order);
        if (i == 0) {
            size = plan->pool + below(granule(&run));
            add_chunk(&run, at, size);
            at += size + below(3);
        }
        for (j = 0; j < sizeof(some) / sizeof(*some); j++) {
            size = chance(60) ? some[j] : below(40ULL << order);
            add_chunk(&run, at, size);
            at += size + (chance(50) ? 0 : below(1 << 15));
        }
        set_algo(&run, any_default());
        mix(&run, 15, 15, 15, 20, 15);
        run.odd = true;
        run.partial = chance(40);
        run.fill = 90;
        churn(&run, i == 0 ? plan->ops * 6 / 10 : plan->ops / 20);
        drain(&run);
    }
}

/* 09: filled until nothing fits, then kept full. */
static void near_full(const struct plan *plan)
{
    struct run run;
    uint64_t cap;

    open_pool(&run, "p", plan->order);
    add_chunk(&run, any_base(plan->order), plan->pool);
    set_algo(&run, any_default());
    /* A fifth of the operations fill it. */
    cap = (plan->pool >> plan->order) / (plan->ops / 5 + 1) * 2 + 1;
    while (gen_pool_avail(run.pool) > plan->pool / 64 && lines < plan->ops / 3)
        if (alloc(&run, bytes_for(&run, 1 + below(cap)), DEFAULT, 0) == 0)
            break;
    ask_avail(&run);
    while (lines < plan->ops) {
        uint64_t frees = 1 + below(20);
        unsigned int failures = 0;

        for (; frees != 0 && run.live_count != 0; frees--)
            one_free(&run);
        while (failures < 3 && lines < plan->ops)
            failures += alloc(&run, bytes_for(&run, 1 + below(chance(10) ? 4 * cap : cap)), DEFAULT,
                              0) == 0;
        if (chance(5))
            ask_avail(&run);
        if (chance(5))
            one_question(&run);
        if (chance(1))
            set_algo(&run, any_default());
    }
    drain(&run);
}

static void (*const families[])(const struct plan *plan) = {
    NULL, first_fit, best_fit, first_fit_align, fixed_places, order_align,
    multi_chunk, partial_frees, odd_sizes, near_full,
};

int main(int count, char **words)
{
    static char buffer[1 << 20];
    struct plan plan;
    uint64_t numbers[5];
    int i;

    for (i = 0; i < 5; i++) {
        char *end = "";
        numbers[i] = i + 1 < count ? strtoull(words[i + 1], &end, 10) : 0;
        if (count != 6 || *end != '\0') {
            fprintf(stderr, "usage: driver FAMILY SEED POOL_BYTES OPS ORDER\n");
            return 2;
        }
    }
    plan = (struct plan){ .pool = numbers[2], .ops = numbers[3], .order = (unsigned int)numbers[4] };
    if (numbers[0] < 1 || numbers[0] > 9 || plan.order > 30 || plan.pool >> plan.order < 64 ||
        plan.pool >> plan.order > 1ULL << 31) {
        fprintf(stderr, "driver: a family of 1 to 9, and 64 to 2^31 granules\n");
        return 2;
    }
    setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
    /* Pools of different sizes get different sequences. */
    for (i = 0; i < 5; i++)
        random_state = (random_state ^ numbers[i]) * 0x9e3779b97f4a7c15 + 1;
    families[numbers[0]](&plan);
    return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}

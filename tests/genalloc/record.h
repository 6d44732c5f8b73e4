/*
 * Pools of genalloc. Every call is written as a line of the trace to standard
 * output, with genalloc's result.
 */
#ifndef GENALLOC_RECORD_H
#define GENALLOC_RECORD_H

#include <linux/genalloc.h>

#define CHUNKS_MAX 64

enum algo { DEFAULT, FIRST_FIT, BEST_FIT, ORDER_ALIGN, ALIGN, FIXED, ALGOS };

struct live {
    uint64_t addr, size;
};

struct run {
    char name[16];
    struct gen_pool *pool;
    unsigned int order;
    /* The oldest is first; genalloc searches from the end. */
    struct { uint64_t base, size; } chunks[CHUNKS_MAX];
    unsigned int chunk_count;
    /* The allocations. With partial frees an entry may be stale. */
    struct live *live;
    size_t live_count, live_room;
    /* The way it is used. */
    unsigned int weights[ALGOS]; /* of the algorithms, in percent */
    unsigned int fill;           /* percentage above which frees prevail */
    bool partial;                /* frees that do not match an allocation */
    bool odd;                    /* test raw ends: requests of whole chunks and tails */
};

/* The number of operations written so far. */
extern uint64_t lines;

uint64_t granule(const struct run *run);
uint64_t round_up(const struct run *run, uint64_t size);

void open_pool(struct run *run, const char *name, unsigned int order);
void add_chunk(struct run *run, uint64_t base, uint64_t size);
void set_algo(struct run *run, enum algo algo);
void ask_avail(const struct run *run);
void ask_size(const struct run *run);
void ask_has_addr(const struct run *run, uint64_t addr, uint64_t size);

/* Returns the address or 0; `extra` is the alignment of ALIGN and the offset of FIXED. */
uint64_t alloc(struct run *run, uint64_t size, enum algo algo, uint64_t extra);

/* Returns whether genalloc did not reach a BUG, after which the pool must not be used. */
bool give_back(struct run *run, uint64_t addr, uint64_t size);

/* Destroys the pool of `run`: a BUG if something is allocated. */
void destroy(struct run *run);

/* Returns the chunk that genalloc's free of `addr` would find. */
struct gen_pool_chunk *chunk_of(const struct run *run, uint64_t addr);

uint64_t granules_of(const struct run *run, const struct gen_pool_chunk *chunk);

/* Returns the number of allocated granules from `addr` on, at most `most`. */
uint64_t taken_from(const struct run *run, uint64_t addr, uint64_t most);

#endif

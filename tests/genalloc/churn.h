/* Random operations on a pool: allocations, frees and queries. */
#ifndef GENALLOC_CHURN_H
#define GENALLOC_CHURN_H

#include "record.h"

/* Returns a number of bytes that needs exactly `granules`, often not filling the last. */
uint64_t bytes_for(const struct run *run, uint64_t granules);

/* One allocation, usually of at most `cap` granules; one free; one query. */
void one_alloc(struct run *run, uint64_t cap);
void one_free(struct run *run);
void one_question(struct run *run);

/* Performs about `ops` operations, in phases that grow, shrink or keep the allocated amount. */
void churn(struct run *run, uint64_t ops);

/* Frees everything, by allocation or in ranges across them, and ends `run`. */
void drain(struct run *run);

#endif

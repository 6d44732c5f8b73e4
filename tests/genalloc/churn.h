/* What a pool is asked: requests, frees and questions at random. */
#ifndef GENALLOC_CHURN_H
#define GENALLOC_CHURN_H

#include "record.h"

/* Bytes that need exactly `granules`, often fewer than all of them. */
uint64_t bytes_for(const struct run *run, uint64_t granules);

/* One request, mostly of at most `cap` granules; one free; one question. */
void one_alloc(struct run *run, uint64_t cap);
void one_free(struct run *run);
void one_question(struct run *run);

/* About `ops` operations, in phases that grow, shrink or keep what is allocated. */
void churn(struct run *run, uint64_t ops);

/* Gives everything back, allocation by allocation or in runs across them; the end of `run`. */
void drain(struct run *run);

#endif

/* Random numbers that are the same for the same seed, on every machine. */
#ifndef GENALLOC_DICE_H
#define GENALLOC_DICE_H

#include <stdbool.h>
#include <stdint.h>

extern uint64_t random_state;

uint64_t random_u64(void);

/* A number below `bound`, 0 when that is 0. */
uint64_t below(uint64_t bound);

bool chance(unsigned int percent);

/* From 1 to `most`, every magnitude as likely as the next. */
uint64_t any_magnitude(uint64_t most);

#endif

/* Random numbers that depend only on the seed, not on the machine. */
#ifndef GENALLOC_DICE_H
#define GENALLOC_DICE_H

#include <stdbool.h>
#include <stdint.h>

extern uint64_t random_state;

uint64_t random_u64(void);

/* Returns a number below `bound`, or 0 if that is 0. */
uint64_t below(uint64_t bound);

bool chance(unsigned int percent);

/* Returns a number from 1 to `most`; all magnitudes are equally likely. */
uint64_t any_magnitude(uint64_t most);

#endif

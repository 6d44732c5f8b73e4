#include "dice.h"

uint64_t random_state;

/* This is splitmix64: every seed gives a full period. */
uint64_t random_u64(void)
{
    uint64_t mixed = (random_state += 0x9e3779b97f4a7c15);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    return mixed ^ (mixed >> 31);
}

uint64_t below(uint64_t bound)
{
    return bound == 0 ? 0 : (uint64_t)(((unsigned __int128)random_u64() * bound) >> 64);
}

bool chance(unsigned int percent)
{
    return below(100) < percent;
}

static unsigned int floor_log2(uint64_t number)
{
    return number == 0 ? 0 : 63 - (unsigned int)__builtin_clzll(number);
}

uint64_t any_magnitude(uint64_t most)
{
    uint64_t number = (1ULL << below(floor_log2(most) + 1)) + below(1ULL << floor_log2(most));
    number = 1 + below(number);
    return number > most ? most : number;
}

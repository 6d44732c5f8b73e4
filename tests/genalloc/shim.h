/*
 * The definitions that lib/genalloc.c and lib/find_bit.c of Linux need, for one thread
 * of a userspace program. scripts/genalloc-traces makes every header they include
 * refer to this file, except their own <linux/genalloc.h>.
 *
 * Nothing here may change an address: memory is zeroed as in the kernel, locks and
 * RCU are empty because there is one thread, and BUG() calls shim_bug(), where the
 * driver records it. The layouts are those of 64-bit Linux.
 */
#ifndef GENALLOC_SHIM_H
#define GENALLOC_SHIM_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(long) == 8, "the recorded addresses are those of 64-bit Linux");

/* Types, and annotations that the compiler may ignore. */
typedef uint32_t u32;
typedef uint64_t u64;
typedef uint64_t phys_addr_t;
typedef uint64_t dma_addr_t;
typedef unsigned int gfp_t;
#define GFP_KERNEL 0U
#define __must_check
#define EXPORT_SYMBOL(name)
#define EXPORT_SYMBOL_GPL(name)
#define unlikely(condition) (condition)
#define likely(condition) (condition)
#define READ_ONCE(place) (*(volatile __typeof__(place) *)&(place))
#define ERR_PTR(error) ((void *)(long)(error))

/* x86-64 selects it; without it genalloc checks whether it runs in an NMI. */
#define CONFIG_ARCH_HAVE_NMI_SAFE_CMPXCHG 1

/* The kernel would stop here; the driver continues with another pool. */
_Noreturn void shim_bug(void);
#define BUG() shim_bug()
#define BUG_ON(condition) do { if (condition) shim_bug(); } while (0)
#define WARN_ON(condition) (!!(condition))

/*
 * Memory. A free in the unusable tail of a chunk reads the word after the bitmap;
 * here that word exists and is 0, so such a free is a BUG.
 */
#define SHIM_SLACK 64
#define kmalloc_node(size, flags, node) calloc(1, (size))
#define vzalloc_node(size, node) calloc(1, (size) + SHIM_SLACK)
#define kfree(pointer) free(pointer)
#define vfree(pointer) free(pointer)
#define kfree_const(pointer) free((void *)(pointer))
char *kstrdup_const(const char *text, gfp_t flags);

/* There is only one thread. */
typedef struct { int unused; } spinlock_t;
#define spin_lock_init(lock) ((void)(lock))
#define spin_lock(lock) ((void)(lock))
#define spin_unlock(lock) ((void)(lock))
#define rcu_read_lock() ((void)0)
#define rcu_read_unlock() ((void)0)
#define cpu_relax() ((void)0)

typedef struct { long value; } atomic_long_t;
#define atomic_long_set(at, to) ((void)((at)->value = (long)(to)))
#define atomic_long_read(at) ((at)->value)
#define atomic_long_add(by, at) ((void)__atomic_fetch_add(&(at)->value, (long)(by), __ATOMIC_SEQ_CST))
#define atomic_long_sub(by, at) ((void)__atomic_fetch_sub(&(at)->value, (long)(by), __ATOMIC_SEQ_CST))
#define cmpxchg(at, was, to) __sync_val_compare_and_swap((at), (was), (to))
#define try_cmpxchg(at, was, to) \
    __atomic_compare_exchange_n((at), (was), (to), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

/* Rings of links: the head's `next` is the newest. */
struct list_head {
    struct list_head *next, *prev;
};
#define list_entry(link, type, member) ((type *)((char *)(link) - offsetof(type, member)))
#define list_for_each_safe(at, after, head) \
    for ((at) = (head)->next; (after) = (at)->next, (at) != (head); (at) = (after))
#define list_for_each_entry_rcu(at, head, member)                     \
    for ((at) = list_entry((head)->next, __typeof__(*(at)), member);  \
         &(at)->member != (head);                                     \
         (at) = list_entry((at)->member.next, __typeof__(*(at)), member))

static inline void INIT_LIST_HEAD(struct list_head *head)
{
    head->next = head->prev = head;
}

static inline void list_add_rcu(struct list_head *link, struct list_head *head)
{
    link->prev = head;
    link->next = head->next;
    head->next->prev = link;
    head->next = link;
}

static inline void list_del(struct list_head *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
}

/* Bits and numbers. */
#define BITS_PER_LONG 64
#define BIT_WORD(bit) ((bit) / BITS_PER_LONG)
#define BITS_TO_LONGS(bits) (((bits) + BITS_PER_LONG - 1) / BITS_PER_LONG)
#define BITMAP_FIRST_WORD_MASK(first) (~0UL << ((first) % BITS_PER_LONG))
#define BITMAP_LAST_WORD_MASK(bits) (~0UL >> (-(bits) % BITS_PER_LONG))
#define __ALIGN_MASK(number, mask) (((number) + (mask)) & ~(mask))
#define __ffs(word) ((unsigned long)__builtin_ctzl(word))
#define __fls(word) ((unsigned long)(BITS_PER_LONG - 1 - __builtin_clzl(word)))
#define hweight_long(word) ((unsigned long)__builtin_popcountl(word))
#define swab(word) __builtin_bswap64(word)
#define min(a, b) ((a) < (b) ? (a) : (b))

static inline unsigned long roundup_pow_of_two(unsigned long number)
{
    return number < 2 ? 1 : 1UL << (BITS_PER_LONG - __builtin_clzl(number - 1));
}

/* From lib/find_bit.c; as in the kernel, these names are wrappers. */
unsigned long _find_first_bit(const unsigned long *map, unsigned long bits);
unsigned long _find_next_bit(const unsigned long *map, unsigned long bits, unsigned long from);
unsigned long _find_next_zero_bit(const unsigned long *map, unsigned long bits, unsigned long from);
unsigned long fns(unsigned long word, unsigned int which);

static inline unsigned long find_first_bit(const unsigned long *map, unsigned long bits)
{
    return _find_first_bit(map, bits);
}

static inline unsigned long find_next_bit(const unsigned long *map, unsigned long bits,
                                          unsigned long from)
{
    return _find_next_bit(map, bits, from);
}

static inline unsigned long find_next_zero_bit(const unsigned long *map, unsigned long bits,
                                               unsigned long from)
{
    return _find_next_zero_bit(map, bits, from);
}

/* From lib/bitmap.c: the only function of it that genalloc needs. */
unsigned long bitmap_find_next_zero_area_off(unsigned long *map, unsigned long size,
                                             unsigned long start, unsigned int nr,
                                             unsigned long align_mask, unsigned long align_offset);

static inline unsigned long bitmap_find_next_zero_area(unsigned long *map, unsigned long size,
                                                       unsigned long start, unsigned int nr,
                                                       unsigned long align_mask)
{
    return bitmap_find_next_zero_area_off(map, size, start, nr, align_mask, 0);
}

/* The functions for pools of devices are compiled, not called, and removed by the linker. */
struct device;
void *devres_find(struct device *dev, void (*release)(struct device *, void *),
                  int (*match)(struct device *, void *, void *), void *data);
void *devres_alloc(void (*release)(struct device *, void *), size_t size, gfp_t flags);
void devres_add(struct device *dev, void *resource);
void devres_free(void *resource);

#endif

/* The least that a guest costs that somebody else asks for: a process of its own,
 * KVM, memory, a cached image, and the first byte on its serial port, which the
 * parent receives. serve.rs compares mkvmm's with it.
 *
 * Usage: floor IMAGE. For each byte on standard input it makes a guest and writes
 * the time from the request to the byte, in nanoseconds, as a line: 'c' makes all of
 * it at the request, in the cheapest order, memory slots first; for 'w' everything
 * was made before, the slot over inaccessible addresses, and the memory is mapped
 * there at the request. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MEMORY (8UL << 20)
#define KERNEL 0x200000UL /* where the image begins, and its entry */
#define TABLES 0x9000UL
/* After this, the kernel's grace periods of what was made are over. */
#define SETTLED 60000

static int kvm, image;
static size_t image_size;
static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[256];
} cpuid = { .head.nent = 256 };

struct guest {
	uint8_t *memory;
	struct kvm_run *run;
	int vm, vcpu;
};

static void check(long result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000UL + time.tv_nsec;
}

static void make_vm(struct guest *guest)
{
	guest->memory = mmap(NULL, MEMORY, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (guest->memory == MAP_FAILED)
		err(1, "mmap");
	guest->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	check(guest->vm, "KVM_CREATE_VM");
}

/* A new file with the image in it, at the guest's addresses. */
static void load(struct guest *guest)
{
	int fd = memfd_create("memory", MFD_CLOEXEC);
	check(fd, "memfd_create");
	check(ftruncate(fd, MEMORY), "ftruncate");
	loff_t from = 0, to = KERNEL;
	for (size_t left = image_size; left;) {
		ssize_t copied = copy_file_range(image, &from, fd, &to, left, 0);
		check(copied, "copy_file_range");
		left -= copied;
	}
	if (mmap(guest->memory, MEMORY, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED)
		err(1, "mmap");
	close(fd);
}

static void make_machine(struct guest *guest)
{
	struct kvm_userspace_memory_region slot = {
		.memory_size = MEMORY,
		.userspace_addr = (uintptr_t)guest->memory,
	};
	check(ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &slot), "slot");
	check(ioctl(guest->vm, KVM_SET_TSS_ADDR, 0xfffbd000UL), "tss");
	check(ioctl(guest->vm, KVM_CREATE_IRQCHIP, 0), "irqchip");
	guest->vcpu = ioctl(guest->vm, KVM_CREATE_VCPU, 0);
	check(guest->vcpu, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	guest->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, guest->vcpu, 0);
	if (guest->run == MAP_FAILED)
		err(1, "mmap");
	check(ioctl(guest->vcpu, KVM_SET_CPUID2, &cpuid), "cpuid");
}

/* Boot data in 64-bit mode, and everything up to the first byte. */
static void run(struct guest *guest, int out)
{
	uint64_t *tables = (uint64_t *)(guest->memory + TABLES);
	tables[0] = TABLES + 0x1003;
	tables[512] = TABLES + 0x2003;
	for (uint64_t page = 0; page < 512; page++)
		tables[1024 + page] = page << 21 | 0x83;
	struct kvm_sregs sregs;
	check(ioctl(guest->vcpu, KVM_GET_SREGS, &sregs), "sregs");
	struct kvm_segment code = {
		.limit = ~0U, .selector = 0x10, .type = 11, .present = 1,
		.s = 1, .l = 1, .g = 1,
	}, data = code;
	data.type = 3;
	data.selector = 0x18;
	data.l = 0;
	data.db = 1;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20;
	sregs.cr0 = 0x80000011;
	sregs.efer = 0x500;
	struct kvm_regs regs = { .rip = KERNEL, .rsp = 0x8ff0, .rflags = 2 };
	check(ioctl(guest->vcpu, KVM_SET_SREGS, &sregs), "sregs");
	check(ioctl(guest->vcpu, KVM_SET_REGS, &regs), "regs");
	do
		check(ioctl(guest->vcpu, KVM_RUN, 0), "KVM_RUN");
	while (guest->run->exit_reason != KVM_EXIT_IO);
	if (write(out, (uint8_t *)guest->run + guest->run->io.data_offset, 1) != 1)
		err(1, "write");
}

/* The child: what it does before the request, and after it. */
static void be_guest(int warm, int request, int out)
{
	struct guest guest;
	char byte;
	if (warm) {
		make_vm(&guest);
		make_machine(&guest);
		check(read(request, &byte, 1), "read");
		load(&guest);
	} else {
		make_vm(&guest);
		load(&guest);
		make_machine(&guest);
	}
	run(&guest, out);
	_exit(0);
}

static uint64_t one(int warm)
{
	int request[2], out[2];
	check(pipe(request) | pipe(out), "pipe");
	uint64_t begin = now();
	pid_t child = fork();
	check(child, "fork");
	if (!child)
		be_guest(warm, request[0], out[1]);
	if (warm) {
		usleep(SETTLED);
		begin = now();
		check(write(request[1], "w", 1), "write");
	}
	char byte;
	close(out[1]);
	if (read(out[0], &byte, 1) != 1)
		errx(1, "the guest has printed nothing");
	uint64_t end = now();
	check(waitpid(child, NULL, 0), "waitpid");
	close(out[0]);
	close(request[0]);
	close(request[1]);
	return end - begin;
}

int main(int argc, char **argv)
{
	struct stat status;
	if (argc != 2)
		errx(2, "usage: floor IMAGE");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(kvm, "/dev/kvm");
	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	int file = open(argv[1], O_RDONLY | O_CLOEXEC);
	check(file, argv[1]);
	check(fstat(file, &status), "fstat");
	image_size = status.st_size;
	image = memfd_create("image", MFD_CLOEXEC);
	check(image, "memfd_create");
	char *bytes = malloc(image_size);
	if (!bytes || read(file, bytes, image_size) != (ssize_t)image_size ||
	    write(image, bytes, image_size) != (ssize_t)image_size)
		err(1, "%s", argv[1]);
	for (int kind; (kind = getchar()) != EOF;) {
		printf("%lu\n", one(kind == 'w'));
		fflush(stdout);
	}
	return 0;
}

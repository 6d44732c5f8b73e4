/* The minimal program that runs bell.S, for comparison with mkvmm's channels: a VM
 * whose doorbell is an eventfd of KVM that is its own interrupt, or two VMs whose
 * doorbells are each other's. channels.rs uses it.
 *
 * bell KERNEL 1|2: KERNEL is bell.S linked at 2 MiB. */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (4UL << 20)
#define BELL 0xc1f0000cUL
#define MEMBER 0xc1f00118UL
#define DOORBELLS 0xc1f00120UL
#define UNMASKED 0xc1f0100cUL
#define GSI 24

struct machine {
	int vm, vcpu;
	uint32_t member;
	struct kvm_run *run;
};

static int kvm, count;
static int events[2];
/* Signalled once the guest takes doorbells: KVM keeps none for later. */
static sem_t ready;
static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[256];
} cpuid = { .head.nent = 256 };

static int must(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void load(uint8_t *memory, const char *path)
{
	static uint8_t file[1 << 20];
	int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);
	ssize_t size = read(fd, file, sizeof(file));
	Elf64_Ehdr *header = (void *)file;
	if (size < (ssize_t)sizeof(*header))
		errx(1, "%s is no kernel", path);
	for (int i = 0; i < header->e_phnum; i++) {
		Elf64_Phdr *part = (void *)(file + header->e_phoff + i * header->e_phentsize);
		if (part->p_type == PT_LOAD && part->p_paddr + part->p_memsz <= MEMORY)
			memcpy(memory + part->p_paddr, file + part->p_offset, part->p_filesz);
	}
	close(fd);
}

static void make(struct machine *it, const char *path)
{
	uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	load(memory, path);
	/* The first GiB, in pages of 2 MiB. */
	uint64_t *tables = (void *)(memory + 0x1000);
	tables[0] = 0x2003;
	tables[512] = 0x3003;
	for (uint64_t i = 0; i < 512; i++)
		tables[1024 + i] = i << 21 | 0x83;
	struct kvm_userspace_memory_region slot = {
		.memory_size = MEMORY,
		.userspace_addr = (uintptr_t)memory,
	};
	it->vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	must(ioctl(it->vm, KVM_SET_USER_MEMORY_REGION, &slot), "slot");
	must(ioctl(it->vm, KVM_SET_TSS_ADDR, 0xfffbd000UL), "tss");
	must(ioctl(it->vm, KVM_CREATE_IRQCHIP, 0), "irqchip");
	it->vcpu = must(ioctl(it->vm, KVM_CREATE_VCPU, 0), "vcpu");
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "size");
	it->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, it->vcpu, 0);
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x200000, .rflags = 2 };
	if (it->run == MAP_FAILED)
		err(1, "run");
	must(ioctl(it->vcpu, KVM_SET_CPUID2, &cpuid), "cpuid");
	must(ioctl(it->vcpu, KVM_GET_SREGS, &sregs), "sregs");
	struct kvm_segment code = { .limit = ~0U, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0U, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = 0x1000;
	sregs.cr4 = 0x20;
	sregs.cr0 = 0x80000011;
	sregs.efer = 0x500;
	must(ioctl(it->vcpu, KVM_SET_SREGS, &sregs), "sregs");
	must(ioctl(it->vcpu, KVM_SET_REGS, &regs), "regs");
}

static void wire(struct machine *it)
{
	static struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry entry;
	} routes = {
		.head.nr = 1,
		.entry = { .gsi = GSI, .type = KVM_IRQ_ROUTING_MSI,
			   .u.msi = { .address_lo = 0xfee00000, .data = 0x60 } },
	};
	must(ioctl(it->vm, KVM_SET_GSI_ROUTING, &routes), "routes");
	struct kvm_irqfd irq = { .fd = events[it->member], .gsi = GSI };
	must(ioctl(it->vm, KVM_IRQFD, &irq), "irqfd");
	for (int member = 0; member < count; member++) {
		struct kvm_ioeventfd bell = {
			.datamatch = (uint64_t)member << 16, .addr = BELL, .len = 4,
			.fd = events[member], .flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
		};
		must(ioctl(it->vm, KVM_IOEVENTFD, &bell), "ioeventfd");
	}
}

static void *run(void *argument)
{
	struct machine *it = argument;
	struct kvm_run *run = it->run;
	for (;;) {
		must(ioctl(it->vcpu, KVM_RUN, 0), "KVM_RUN");
		if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write) {
			uint32_t value = run->mmio.phys_addr == MEMBER ? it->member :
					 run->mmio.phys_addr == DOORBELLS ? (uint32_t)count : 0;
			memcpy(run->mmio.data, &value, sizeof(value));
		} else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == UNMASKED) {
			sem_post(&ready);
		} else if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0x3f8) {
			putchar(*((uint8_t *)run + run->io.data_offset));
		} else if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0x64) {
			break;
		} else if (run->exit_reason != KVM_EXIT_MMIO && run->exit_reason != KVM_EXIT_IO) {
			errx(1, "exit %u", run->exit_reason);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static struct machine machines[2];
	if (argc != 3 || (count = atoi(argv[2])) < 1 || count > 2)
		errx(2, "usage: bell KERNEL 1|2");
	kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "cpuid");
	for (int i = 0; i < count; i++)
		events[i] = must(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
	for (int i = 0; i < count; i++) {
		machines[i].member = i;
		make(&machines[i], argv[1]);
		wire(&machines[i]);
	}
	pthread_t other;
	sem_init(&ready, 0, 0);
	if (count > 1 && pthread_create(&other, NULL, run, &machines[1]))
		errx(1, "no thread");
	if (count > 1)
		sem_wait(&ready);
	run(&machines[0]);
	fflush(stdout);
	_exit(0);
}

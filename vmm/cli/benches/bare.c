/* The minimal program that reaches a guest's first byte, for comparison with
 * mkvmm's spawn time. Its ioctls are in the cheapest order: memory slots before
 * irqchip, PIT and vCPU. With an argument it reads that file into the guest's memory, as
 * if it were a kernel. spawn.rs and cold.rs use it. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (128UL << 20)

int main(int argc, char **argv)
{
	/* mov $0x3f8,%dx; mov $'x',%al; out %al,(%dx) */
	static const uint8_t code[] = { 0xba, 0xf8, 0x03, 0xb0, 'x', 0xee };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	int fd = memfd_create("pool", MFD_CLOEXEC);
	if (vm < 0 || fd < 0 || ftruncate(fd, MEMORY))
		err(1, "setup");
	uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	memcpy(memory + 0x1000, code, sizeof(code));
	int image = argc > 1 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
	for (uint8_t *to = memory + (2 << 20); image >= 0;) {
		ssize_t got = read(image, to, memory + MEMORY - to);
		if (got < 0)
			err(1, "%s", argv[1]);
		if (got == 0)
			break;
		to += got;
	}
	struct kvm_userspace_memory_region slot = {
		.memory_size = MEMORY,
		.userspace_addr = (uintptr_t)memory,
	};
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) ||
	    ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL) ||
	    ioctl(vm, KVM_CREATE_IRQCHIP, 0) || ioctl(vm, KVM_CREATE_PIT2, &pit))
		err(1, "vm");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid = { .head.nent = 256 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	if (run == MAP_FAILED || ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) ||
	    ioctl(vcpu, KVM_SET_CPUID2, &cpuid) || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "vcpu");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "regs");
	do {
		if (ioctl(vcpu, KVM_RUN, 0))
			err(1, "KVM_RUN");
	} while (run->exit_reason != KVM_EXIT_IO);
	return write(1, (uint8_t *)run + run->io.data_offset, 1) == 1 ? 0 : 1;
}

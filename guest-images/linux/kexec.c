/* kexec KERNEL INITRAMFS CMDLINE: loads a kernel in place of this one, and
 * starts it at once. The tools of a distribution end services first; a guest
 * whose only program is its init has none. */
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: kexec KERNEL INITRAMFS CMDLINE\n");
		return 2;
	}
	int kernel = open(argv[1], O_RDONLY | O_CLOEXEC);
	int initramfs = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (kernel < 0 || initramfs < 0) {
		perror("kexec: open");
		return 3;
	}
	/* The length counts the final NUL. */
	unsigned long length = strlen(argv[3]) + 1;
	if (syscall(SYS_kexec_file_load, kernel, initramfs, length, argv[3], 0UL)) {
		perror("kexec: kexec_file_load");
		return 1;
	}
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	perror("kexec: reboot");
	return 1;
}

//! A guest of a scenario, and the `--guest` that creates it.

use std::path::{Path, PathBuf};

/// The default initramfs of all guests.
pub const SMALL: &str = "initramfs.cpio.gz";
/// An initramfs of exactly [`LARGE_SIZE`] bytes.
pub const LARGE: &str = "initramfs-100M.cpio.gz";
/// The size of the large initramfs: 100 MiB.
pub const LARGE_SIZE: u64 = 100 << 20;
/// The size of the large initramfs for `scripts/linux-initramfs --size`.
pub const LARGE_MIB: &str = "100";

/// The archive of Linux's tools.
pub const TOOLS: &str = "tools.cpio.gz";

/// The file name of the archive with which a guest starts `kernel` itself.
pub fn kexec(kernel: &str) -> String {
    format!("kexec-{kernel}.cpio")
}

/// The form in which mkvmm gets the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Debian's bzImage, which mkvmm unpacks.
    BzImage,
    /// The `vmlinux` extracted from the bzImage.
    Elf,
    /// Debian's bzImage, which unpacks itself in the guest.
    InGuest,
}

/// One guest of a scenario.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// The name of the guest.
    pub name: &'static str,
    /// The name of Debian's kernel, as in `kernels`.
    pub kernel: &'static str,
    /// The form of the kernel.
    pub form: Form,
    /// The file name of its initramfs.
    pub initramfs: &'static str,
    /// The size of its memory in MiB.
    pub memory_mib: u64,
    /// The number of regions of its memory.
    pub regions: usize,
    /// The number of its vCPUs.
    pub cpus: u32,
    /// The way in which it ends: the value of `mkvmm.end`.
    pub end: &'static str,
    /// Whether it asks Linux's tools about its devices.
    pub tools: bool,
    /// Whether it starts its next kernel itself, instead of reporting.
    pub kexec: bool,
}

impl Guest {
    /// Creates a guest with one vCPU and one region that ends with a restart.
    pub const fn new(name: &'static str, kernel: &'static str, memory_mib: u64) -> Self {
        Self {
            name,
            kernel,
            form: Form::BzImage,
            initramfs: SMALL,
            memory_mib,
            regions: 1,
            cpus: 1,
            end: "reboot",
            tools: false,
            kexec: false,
        }
    }

    /// Asking Linux's tools about its devices.
    pub const fn tools(self) -> Self {
        Self {
            tools: true,
            ..self
        }
    }

    /// Starting its next kernel itself.
    pub const fn kexec(self) -> Self {
        Self {
            kexec: true,
            ..self
        }
    }

    /// Sets the form of its kernel.
    pub const fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Sets its initramfs.
    pub const fn initramfs(self, initramfs: &'static str) -> Self {
        Self { initramfs, ..self }
    }

    /// Sets the number of regions of its memory.
    pub const fn regions(self, regions: usize) -> Self {
        Self { regions, ..self }
    }

    /// Sets the number of its vCPUs.
    pub const fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    /// Sets the way in which it ends.
    pub const fn end(self, end: &'static str) -> Self {
        Self { end, ..self }
    }

    /// Returns the command line of its kernel, which is quiet: an emulated host
    /// is slow for each byte, and the init prints the relevant parts of its
    /// log.
    pub fn cmdline(&self) -> String {
        let tools = if self.tools { " mkvmm.tools" } else { "" };
        let kexec = if self.kexec { " mkvmm.kexec" } else { "" };
        format!(
            "console=ttyS0 quiet mkvmm.end={} mkvmm.tick=1{tools}{kexec}",
            self.end
        )
    }

    /// The file name of an archive behind its initramfs, if it has one.
    fn archive(&self) -> Option<String> {
        match (self.tools, self.kexec) {
            (true, _) => Some(TOOLS.to_owned()),
            (_, true) => Some(kexec(self.kernel)),
            _ => None,
        }
    }

    /// Returns the file name of its kernel.
    pub fn kernel_file(&self) -> String {
        let kind = match self.form {
            Form::Elf => "vmlinux",
            Form::BzImage | Form::InGuest => "vmlinuz",
        };
        format!("{kind}-{}", self.kernel)
    }

    /// Returns whether its initramfs is one archive.
    pub fn has_one_archive(&self) -> bool {
        !self.tools && !self.kexec
    }

    /// Returns the path of its initramfs.
    pub fn initramfs_path(&self, images: &Path) -> PathBuf {
        images.join(self.initramfs)
    }

    /// Returns the value of its `--guest`.
    pub fn spec(&self, images: &Path) -> String {
        let boot = match self.form {
            Form::InGuest => ",boot=bzimage",
            Form::BzImage | Form::Elf => "",
        };
        let archive = self.archive().map(|name| images.join(name));
        let archive = archive.map(|path| format!(",initrd={}", path.display()));
        let boot = format!("{boot}{}", archive.unwrap_or_default());
        format!(
            "name={},kernel={},initrd={},memory={}M,cpus={}{boot},cmdline={}",
            self.name,
            images.join(self.kernel_file()).display(),
            self.initramfs_path(images).display(),
            self.memory_mib,
            self.cpus,
            self.cmdline(),
        )
    }
}

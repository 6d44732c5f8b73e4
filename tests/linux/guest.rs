//! A guest of a scenario, and the `--guest` that makes it.

use std::path::{Path, PathBuf};

/// The initramfs that all guests have unless they say otherwise.
pub const SMALL: &str = "initramfs.cpio.gz";
/// An initramfs of just [`LARGE_SIZE`] bytes.
pub const LARGE: &str = "initramfs-100M.cpio.gz";
/// 100 MiB.
pub const LARGE_SIZE: u64 = 100 << 20;
/// The same, for `scripts/linux-initramfs --size`.
pub const LARGE_MIB: &str = "100";

/// In which form mkvmm gets the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Debian's bzImage, which mkvmm unpacks.
    BzImage,
    /// The `vmlinux` out of the bzImage.
    Elf,
    /// Debian's bzImage, which unpacks itself in the guest.
    InGuest,
}

/// One guest of a scenario.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// Which of Debian's kernels: `6.1` or `6.12`.
    pub kernel: &'static str,
    /// In which form.
    pub form: Form,
    /// The file name of its initramfs.
    pub initramfs: &'static str,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// In how many regions.
    pub regions: usize,
    /// Its vCPUs.
    pub cpus: u32,
    /// How it ends: the value of `mkvmm.end`.
    pub end: &'static str,
}

impl Guest {
    /// A guest with one vCPU and one region that is to restart.
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
        }
    }

    /// With its kernel in this form.
    pub const fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// With this initramfs.
    pub const fn initramfs(self, initramfs: &'static str) -> Self {
        Self { initramfs, ..self }
    }

    /// With its memory in so many regions.
    pub const fn regions(self, regions: usize) -> Self {
        Self { regions, ..self }
    }

    /// With so many vCPUs.
    pub const fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    /// Ending in this way.
    pub const fn end(self, end: &'static str) -> Self {
        Self { end, ..self }
    }

    /// The command line of its kernel, which is quiet: an emulated host takes
    /// long for each byte, and the init prints what matters of its log.
    pub fn cmdline(&self) -> String {
        format!("console=ttyS0 quiet mkvmm.end={} mkvmm.tick=1", self.end)
    }

    /// The file of its kernel.
    pub fn kernel_file(&self) -> String {
        let kind = match self.form {
            Form::Elf => "vmlinux",
            Form::BzImage | Form::InGuest => "vmlinuz",
        };
        format!("{kind}-{}", self.kernel)
    }

    /// The path of its initramfs.
    pub fn initramfs_path(&self, images: &Path) -> PathBuf {
        images.join(self.initramfs)
    }

    /// The value of its `--guest`.
    pub fn spec(&self, images: &Path) -> String {
        let boot = match self.form {
            Form::InGuest => ",boot=bzimage",
            Form::BzImage | Form::Elf => "",
        };
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

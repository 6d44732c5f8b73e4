//! Tests of the store, with unpackers that work, hang or lie.

use super::*;
use std::cell::Cell;
use std::fs::{self, File};
use std::future::pending;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use mkvmm_base::unpacking::{Facts, UnpackErrorClass};
use mkvmm_image::KernelImage;
use tokio::sync::Semaphore;

use crate::source::ImageDirs;
use crate::unpackers::UnpackersError;

const ROOMY: u64 = 1 << 30;
const BUDGET: Budget = Budget {
    kept: 1 << 30,
    kept_count: 16,
    in_flight: 2 << 30,
};

/// A temporary directory, removed with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mkvmm-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, content: &[u8]) -> ImageSource {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        ImageSource::Path(path)
    }

    /// Creates a file that has not changed for long enough to be cached.
    async fn settled(&self, name: &str, content: &[u8]) -> ImageSource {
        let source = self.file(name, content);
        wait_until_settled(&source).await;
        source
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn wait_until_settled(source: &ImageSource) {
    let id = source.open(&Access::Own).unwrap().id.unwrap();
    while !id.has_settled(SystemTime::now()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn client() -> Arc<Access> {
    Arc::new(Access::Client(ImageDirs::default()))
}

fn probe() -> BuiltIn {
    BuiltIn {
        name: "probe",
        bytes: mkvmm_guest_images::PROBE,
        content: KernelImage::probe_content().unwrap(),
        boot: BootMode::Elf,
    }
}

fn store<U: Unpackers + 'static>(unpackers: U, budget: Budget) -> ImageStore<U> {
    ImageStore::new(unpackers, budget, probe())
}

/// Unpacks in this process, and counts the jobs.
#[derive(Debug, Default, Clone)]
struct InProcess(Rc<Cell<u64>>);

impl Unpackers for InProcess {
    async fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<Unpacked, UnpackersError> {
        self.0.set(self.0.get() + 1);
        let answer = spawn_blocking(move || mkvmm_image::child::answer(&job, image, output));
        Ok(answer.await.unwrap()?)
    }
}

/// Unpacks kernels only with a permit; counts the jobs in progress.
#[derive(Debug, Clone)]
struct Gated {
    inner: InProcess,
    gate: Rc<Semaphore>,
    working: Rc<Cell<u64>>,
}

impl Gated {
    fn new() -> Self {
        Self {
            inner: InProcess::default(),
            gate: Rc::new(Semaphore::new(0)),
            working: Rc::default(),
        }
    }

    async fn until_working(&self, count: u64) {
        while self.working.get() != count {
            tokio::task::yield_now().await;
        }
    }
}

/// A job in progress, removed from the count when it ends or is stopped.
struct Working(Rc<Cell<u64>>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Unpackers for Gated {
    async fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<Unpacked, UnpackersError> {
        self.working.set(self.working.get() + 1);
        let _working = Working(Rc::clone(&self.working));
        if job.role != ImageRole::Initramfs {
            self.gate.acquire().await.unwrap().forget();
        }
        self.inner.unpack(job, image, output).await
    }
}

/// Unpacks, and then falsifies the answer or the output.
struct Lying<F>(F);

impl<F: Fn(&mut Unpacked, &File)> Unpackers for Lying<F> {
    async fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<Unpacked, UnpackersError> {
        let file = File::from(output.try_clone().unwrap());
        let mut answer = InProcess::default().unpack(job, image, output).await?;
        (self.0)(&mut answer, &file);
        Ok(answer)
    }
}

async fn kernel<U: Unpackers + 'static>(
    store: &ImageStore<U>,
    source: &ImageSource,
    limit: u64,
) -> Result<Loaded, StoreError> {
    store.kernel(source, &client(), BootMode::Elf, limit).await
}

async fn archive<U: Unpackers + 'static>(
    store: &ImageStore<U>,
    source: &ImageSource,
) -> Result<Loaded, StoreError> {
    store.initramfs(source, &client(), ROOMY).await
}

fn bytes(loaded: &Loaded) -> Vec<u8> {
    let file = File::from(loaded.image.file().try_clone().unwrap());
    let mut bytes = vec![0; usize::try_from(loaded.image.size()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Returns a bzImage of the probe, as Linux's build would create with zstd.
fn bzimage() -> Vec<u8> {
    let elf = mkvmm_guest_images::PROBE;
    let mut payload = zstd::encode_all(elf, 1).unwrap();
    payload.extend(u32::try_from(elf.len()).unwrap().to_le_bytes());
    let mut file = vec![0_u8; 1024 + 0x210];
    let paragraphs = u32::try_from((0x210 + payload.len()).div_ceil(16)).unwrap();
    let length = u32::try_from(payload.len()).unwrap();
    let fields: [(usize, &[u8]); 11] = [
        (0x1f1, &[1]),
        (0x1f4, &paragraphs.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS\x0f\x02"),
        (0x20e, &0x120_u16.to_le_bytes()),
        (0x230, &0x20_0000_u32.to_le_bytes()),
        (0x234, &[1, 0, 3, 0, 0xff, 7]),
        (0x248, &0x210_u32.to_le_bytes()),
        (0x24c, &length.to_le_bytes()),
        (0x260, &0x100_0000_u32.to_le_bytes()),
        (0x320, b"6.1.0 (x)"),
    ];
    for (at, bytes) in fields {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file.extend(payload);
    file
}

mod cached;
mod hostile;
mod late;
mod waiting;

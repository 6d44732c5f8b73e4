//! Related requests, such as those of one launch.

use std::collections::HashMap;
use std::sync::Arc;

use mkvmm_base::image_facts::BootMode;
use mkvmm_base::unpacking::ImageRole;

use super::{ImageStore, Loaded, StoreError, sizes};
use crate::source::{Access, ImageSource};
use crate::unpackers::Unpackers;

/// Related requests: within a batch each source is read once, which is
/// necessary for a pipe that several guests name.
#[derive(Debug)]
pub struct Batch<U> {
    store: ImageStore<U>,
    access: Arc<Access>,
    done: HashMap<(ImageSource, ImageRole), Loaded>,
}

impl<U: Unpackers + 'static> ImageStore<U> {
    /// Begins a batch of related requests, such as those of one launch.
    pub fn batch(&self, access: Arc<Access>) -> Batch<U> {
        Batch {
            store: self.clone(),
            access,
            done: HashMap::new(),
        }
    }
}

impl<U: Unpackers + 'static> Batch<U> {
    /// Returns a kernel, like [`ImageStore::kernel`].
    ///
    /// # Errors
    /// Returns the errors of [`ImageStore::kernel`].
    pub async fn kernel(
        &mut self,
        source: &ImageSource,
        boot: BootMode,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        self.get(source, ImageRole::Kernel(boot), limit).await
    }

    /// Returns an archive, like [`ImageStore::initramfs`].
    ///
    /// # Errors
    /// Returns the errors of [`ImageStore::kernel`].
    pub async fn initramfs(
        &mut self,
        source: &ImageSource,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        self.get(source, ImageRole::Initramfs, limit).await
    }

    async fn get(
        &mut self,
        source: &ImageSource,
        role: ImageRole,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        let key = (source.clone(), role);
        if let Some(loaded) = self.done.get(&key) {
            sizes::expect_fit(&loaded.image, limit)?;
            return Ok(loaded.clone());
        }
        let loaded = self.store.get(source, &self.access, role, limit).await?;
        self.done.insert(key, loaded.clone());
        Ok(loaded)
    }
}

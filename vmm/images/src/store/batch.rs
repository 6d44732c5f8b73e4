//! Requests that belong together, such as those of one launch.

use std::collections::HashMap;
use std::sync::Arc;

use mkvmm_base::image_facts::BootMode;
use mkvmm_base::unpacking::ImageRole;

use super::{ImageStore, Loaded, StoreError, sizes};
use crate::source::{Access, ImageSource};
use crate::unpackers::Unpackers;

/// Requests that belong together: within them a source is read once, which a
/// pipe needs when several guests name it.
#[derive(Debug)]
pub struct Batch<U> {
    store: ImageStore<U>,
    access: Arc<Access>,
    done: HashMap<(ImageSource, ImageRole), Loaded>,
}

impl<U: Unpackers + 'static> ImageStore<U> {
    /// Starts requests that belong together, such as those of one launch.
    pub fn batch(&self, access: Arc<Access>) -> Batch<U> {
        Batch {
            store: self.clone(),
            access,
            done: HashMap::new(),
        }
    }
}

impl<U: Unpackers + 'static> Batch<U> {
    /// As [`ImageStore::kernel`].
    ///
    /// # Errors
    /// As [`ImageStore::kernel`].
    pub async fn kernel(
        &mut self,
        source: &ImageSource,
        boot: BootMode,
        limit: u64,
    ) -> Result<Loaded, StoreError> {
        self.get(source, ImageRole::Kernel(boot), limit).await
    }

    /// As [`ImageStore::initramfs`].
    ///
    /// # Errors
    /// As [`ImageStore::kernel`].
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

//! Builds the devices that the manager has ordered, from the descriptors that it
//! has opened.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::vec::IntoIter;

use mkvmm_virtio::VirtioDevice;
use mkvmm_virtio::net::{Link, Mac, Net, NetSettings, Segment, Stream};
use mkvmm_virtio::rng::Rng;
use mkvmm_wire::WireError;
use mkvmm_wire::devices::{Device, NetLink};
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::console;

use crate::devices::virtio::console::VirtioConsole;
use crate::worker::console::SharedConsole;
use crate::worker::disks::Rings;
use crate::worker::segment::News;

/// A reason why a device was not built.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The number of descriptors does not match the devices.
    #[error("internal error: devices came without their descriptors")]
    Descriptors,
    /// The memory of a console cannot be opened.
    #[error("the memory of a console cannot be opened")]
    Shared(#[from] SharedError),
    /// The channel for news of a segment is unusable.
    #[error("the channel of a network device")]
    Wire(#[from] WireError),
    /// The host gives the device too little.
    #[error("the device {device} cannot be created")]
    Io {
        /// The name of the device.
        device: &'static str,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
}

/// Builds all devices of a guest; `files` are those of all of them, in their
/// order.
///
/// # Errors
/// Returns a [`DeviceError`].
pub fn build(
    devices: &[Device],
    files: Vec<OwnedFd>,
    rings: &mut Rings,
) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut files = files.into_iter();
    let built = devices.iter().map(|device| {
        let own = take(&mut files, device.descriptors())?;
        build_one(device, own, rings)
    });
    let built = built.collect::<Result<_, _>>()?;
    match files.next() {
        None => Ok(built),
        Some(_nobodys) => Err(DeviceError::Descriptors),
    }
}

/// Builds a device from its own descriptors.
fn build_one(
    device: &Device,
    files: Vec<OwnedFd>,
    rings: &mut Rings,
) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    let named = |device| move |source| DeviceError::Io { device, source };
    match device {
        Device::Rng => {
            let [] = fixed(files)?;
            Ok(Box::new(Rng::new().map_err(named("rng"))?))
        }
        Device::Console => {
            let [file, bell] = fixed(files)?;
            let bell = Bell::from(bell);
            let (printer, input) = console::Console::open(file)?.worker(&bell);
            let console = SharedConsole::new(printer, input);
            Ok(Box::new(VirtioConsole::new(Arc::new(console), bell)))
        }
        Device::Disk(disk) => {
            let [file] = fixed(files)?;
            Ok(Box::new(rings.disk(disk, file).map_err(named("disk"))?))
        }
        Device::Net { mac, mtu, link } => {
            let [descriptor] = fixed(files)?;
            let mac = Mac(*mac);
            let link: Box<dyn Link> = match link {
                NetLink::Stream => Box::new(Stream::new(descriptor)),
                NetLink::Segment => {
                    let news = News::open(descriptor)?;
                    Box::new(Segment::new(mac, news).map_err(named("net"))?)
                }
            };
            let settings = NetSettings { mac, mtu: *mtu };
            Ok(Box::new(Net::new(settings, link)))
        }
    }
}

fn take(files: &mut IntoIter<OwnedFd>, count: usize) -> Result<Vec<OwnedFd>, DeviceError> {
    let own: Vec<OwnedFd> = files.take(count).collect();
    match own.len() == count {
        true => Ok(own),
        false => Err(DeviceError::Descriptors),
    }
}

/// Returns exactly as many descriptors as a device has.
fn fixed<const N: usize>(files: Vec<OwnedFd>) -> Result<[OwnedFd; N], DeviceError> {
    files.try_into().map_err(|_files| DeviceError::Descriptors)
}

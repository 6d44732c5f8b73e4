//! Connects the network devices of an instance, anew at each boot.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_api::devices::{Device as Described, DeviceSpec};
use mkvmm_api::net::{NetLink, NetSpec};
use mkvmm_base::mac::Mac;
use mkvmm_base::{InstanceId, RunId, chain};
use mkvmm_keeper::cgroup::Leaf;
use mkvmm_keeper::client::Inventory;
use mkvmm_wire::channel;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::devices::{self, Device};
use mkvmm_wire::keeping::Key;
use rustix::process::Pid;

use crate::event_log::EventKind;
use crate::guest::Guest;
use crate::harmless::harmless;
use crate::life::StepError;
use crate::links::Links;
use crate::manager::Manager;
use crate::passt::{self, Connected, Passt};
use crate::segments::{Place, SegmentError};

/// The time in which a guest ends whose passt has ended with its worker.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A network device that is to be connected.
struct Wanted {
    /// Its position among the devices of its instance.
    device: u8,
    spec: NetSpec,
    mac: Mac,
}

/// The orders for devices that were connected, with their descriptors, by position.
pub(crate) type Orders = BTreeMap<usize, (Device, OwnedFd)>;

impl Manager {
    /// Connects the network devices of an instance for a boot.
    ///
    /// # Errors
    /// Returns a [`StepError`]; nothing is connected then.
    pub(crate) async fn connect_links(
        self: &Rc<Self>,
        id: InstanceId,
    ) -> Result<Orders, StepError> {
        self.disconnect(id);
        let wanted = match self.registry().guest(id) {
            Some(guest) => wanted(id, &guest.config.spec.devices()),
            None => return Ok(Orders::new()),
        };
        let mut links = Links::default();
        let mut orders = Orders::new();
        for one in wanted {
            let connected = self.connect_one(id, &one, &mut links).await;
            let connected = connected.inspect_err(|_| self.segments.leave(id))?;
            let index = usize::from(one.device);
            orders.insert(index, connected);
        }
        let mut registry = self.registry_mut();
        match registry.guest_mut(id) {
            Some(guest) if guest.worker.is_some() => guest.links = links,
            _ => {
                drop(registry);
                self.segments.leave(id);
                return Err(StepError::Lost);
            }
        }
        Ok(orders)
    }

    async fn connect_one(
        self: &Rc<Self>,
        id: InstanceId,
        wanted: &Wanted,
        links: &mut Links,
    ) -> Result<(Device, OwnedFd), StepError> {
        let (link, descriptor) = match &wanted.spec.link {
            NetLink::Passt { forwards } => {
                let socket = self
                    .start_passt(id, wanted, forwards.clone(), links)
                    .await?;
                (devices::NetLink::Stream, socket)
            }
            NetLink::Pool(segment) => {
                let (ours, theirs) = channel::pair().map_err(SegmentError::from)?;
                let key = Key::Segment {
                    instance: id.0,
                    device: wanted.device,
                };
                links.held.extend(self.hold(key, &[ours.as_fd()])?);
                let channel = AsyncChannel::open(ours).map_err(SegmentError::from)?;
                let place = Place {
                    segment: segment.clone(),
                    id,
                    device: wanted.device,
                    mac: wanted.mac,
                };
                self.segments.join(&place, channel)?;
                (devices::NetLink::Segment, theirs)
            }
        };
        let device = Device::Net {
            mac: wanted.mac.bytes(),
            mtu: wanted.spec.mtu,
            link,
        };
        Ok((device, descriptor))
    }

    async fn start_passt(
        self: &Rc<Self>,
        id: InstanceId,
        wanted: &Wanted,
        forwards: Vec<mkvmm_api::net::Forward>,
        links: &mut Links,
    ) -> Result<OwnedFd, StepError> {
        let (run, label, leaf) = match self.registry().guest(id) {
            Some(guest) => (guest.run_id(), guest.name().to_string(), guest.leaf.clone()),
            None => return Err(StepError::Killed),
        };
        let settings = passt::Settings {
            label,
            forwards,
            mtu: wanted.spec.mtu,
        };
        // Where a process cannot be started in its cgroup, it is moved there.
        let place = leaf.as_deref().map(Leaf::birthplace).transpose();
        let place = place.ok().flatten().flatten();
        let children = &self.host.children;
        let cgroup = place.as_ref().map(AsFd::as_fd);
        let connected = passt::connect(children, &settings, cgroup).await?;
        if let Some(leaf) = leaf {
            admit(leaf, connected.child.pid()).await;
        }
        let Connected {
            child,
            serial,
            words,
            socket,
        } = connected;
        if let Some(serial) = serial {
            let key = Key::Passt {
                instance: id.0,
                device: wanted.device,
                serial,
            };
            links.held.extend(self.hold(key, &[words.as_fd()])?);
        }
        let on_end = self.on_passt_end(run, wanted.device);
        links
            .passts
            .push(Passt::watch(child, words, serial.is_some(), on_end));
        Ok(socket)
    }

    /// Returns what is called when a passt ends by itself: its guest goes on, with
    /// the link of the device down, unless it is ending: passt ends with the process
    /// that it is connected to.
    fn on_passt_end(self: &Rc<Self>, run: RunId, device: u8) -> impl FnOnce(String) + 'static {
        let manager = Rc::downgrade(self);
        move |words| {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(LAST_WORDS).await;
                let Some(manager) = manager.upgrade() else {
                    return;
                };
                let registry = manager.registry();
                let goes_on = |guest: &&Guest| {
                    guest.run_id() == run && guest.worker.is_some() && guest.word.is_none()
                };
                let Some(guest) = registry.guest(run.id).filter(goes_on) else {
                    return;
                };
                let message = harmless(&words);
                let address = Described::address_of(device + 1);
                let name = guest.name().to_string();
                log::warn!("{name}: the link of device {address} is down: {message}");
                let kind = EventKind::LinkDown { address, message };
                registry.log().push(Some(name), kind);
            });
        }
    }

    /// Disconnects the network devices and channels of an instance whose worker is
    /// gone.
    pub(crate) fn disconnect(&self, id: InstanceId) {
        self.segments.leave(id);
        let mut registry = self.registry_mut();
        registry.leave_channels(id);
        let links = registry.guest_mut(id);
        let links = links.map(|guest| std::mem::take(&mut guest.links));
        drop(registry);
        drop(links);
    }

    /// Takes over what an earlier manager has connected the devices of an instance
    /// to, which has a worker. What it did not complete ends.
    pub(crate) fn adopt_links(self: &Rc<Self>, id: InstanceId, inventory: &mut Inventory) {
        let (run, wire, all) = match self.registry().guest(id) {
            Some(guest) if guest.worker.is_some() => {
                let all = wanted(id, &guest.config.spec.devices());
                (guest.run_id(), guest.wire, all)
            }
            _ => return,
        };
        let mut links = Links::default();
        for one in all {
            let key = inventory.held.keys().copied().find(|key| match key {
                Key::Passt {
                    instance, device, ..
                }
                | Key::Segment { instance, device } => *instance == id.0 && *device == one.device,
                _ => false,
            });
            let Some(key) = key else { continue };
            let Some((mut descriptors, held)) = inventory.held.remove(&key) else {
                continue;
            };
            let Some(descriptor) = descriptors.pop() else {
                continue;
            };
            match (key, &one.spec.link) {
                (Key::Passt { serial, .. }, NetLink::Passt { .. }) => {
                    let Some(kept) = inventory.children.remove(&serial) else {
                        continue;
                    };
                    let on_end = self.on_passt_end(run, one.device);
                    let words = File::from(descriptor);
                    links
                        .passts
                        .push(Passt::watch(kept.child, words, true, on_end));
                }
                (_, NetLink::Pool(segment)) => {
                    let place = Place {
                        segment: segment.clone(),
                        id,
                        device: one.device,
                        mac: one.mac,
                    };
                    let resumed =
                        AsyncChannel::resume(descriptor, wire).map_err(SegmentError::from);
                    let joined = resumed.and_then(|channel| self.segments.join(&place, channel));
                    if let Err(error) = joined {
                        log::error!("instance {id}: {}", chain(&error));
                    }
                }
                _ => continue,
            }
            links.held.push(held);
        }
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.links = links;
        }
    }
}

/// Returns the network devices among `devices`, with their positions.
fn wanted(id: InstanceId, devices: &[DeviceSpec]) -> Vec<Wanted> {
    let numbered = devices.iter().zip(0_u8..);
    let nets = numbered.filter_map(|(spec, device)| match spec {
        DeviceSpec::Net(spec) => Some(Wanted {
            device,
            mac: spec.mac.unwrap_or(Mac::derived(id.0, device)),
            spec: spec.clone(),
        }),
        DeviceSpec::Rng | DeviceSpec::Console { .. } | DeviceSpec::Disk(_) => None,
    });
    nets.collect()
}

/// Moves a helper to the cgroup of its guest, as far as it was not started there.
pub(crate) async fn admit(leaf: Arc<Leaf>, pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else {
        return;
    };
    let moved = tokio::task::spawn_blocking(move || leaf.admit(pid)).await;
    match moved {
        Ok(Ok(())) | Err(_) => {}
        // It is accounted for elsewhere, and ends with its guest all the same.
        Ok(Err(error)) => log::debug!("{}", chain(&error)),
    }
}

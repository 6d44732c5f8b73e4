//! Metrics in the OpenMetrics text format.
//!
//! Everything is counted where it happens; a scrape only reads. Series of an
//! instance carry its name and its number: as numbers are never reused, a
//! counter belongs to one instance, starts at 0 with it and disappears with it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::boot_spans::BootSpans;
use crate::channels::Channel;
use crate::control::instance_metrics::{DeviceFacts, InstanceFacts, Labels, Rows};
use crate::control::objects;
use crate::stock::{Stock, StockCounters};
use mkvmm_base::state::State;
use mkvmm_base::timeline;
use mkvmm_images::CacheCounters;
use mkvmm_memory::host_pool::alloc_log::{CountKey, Op, Outcome};

use mkvmm_api::devices::DeviceSpec;
use mkvmm_api::pool::Pool;
use mkvmm_wire::shared::board;

/// The content type that scrapers accept.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All states, so that a scraper sees a zero instead of a missing series.
const STATES: [State; 8] = [
    State::Ready,
    State::Loaded,
    State::Active,
    State::Paused,
    State::Stopped,
    State::Failed,
    State::Cleaning,
    State::Stalled,
];

type Gauges = Family<Labels, Gauge>;
type Counters = Family<Labels, Counter>;

/// The data for the metrics, except for the image cache.
#[derive(Debug)]
pub struct MetricsFacts {
    pool: Pool,
    allocations: BTreeMap<CountKey, u64>,
    instances: Vec<InstanceFacts>,
    channels: Vec<ChannelFacts>,
    boots: BootSpans,
    /// The number of workers that wait, of how many, and what became of others.
    stock: (u64, u64, StockCounters),
}

/// The data of a channel for the metrics.
#[derive(Debug)]
struct ChannelFacts {
    labels: Labels,
    size: u64,
    /// For each member its name, whether it is present, and its boots.
    members: Vec<(String, bool, u32)>,
}

impl ChannelFacts {
    fn of(channel: &Channel) -> Self {
        let members = channel.members().iter().map(|member| {
            let is_present = member.is_present();
            (member.name.to_string(), is_present, member.boots)
        });
        Self {
            labels: vec![
                ("name", channel.name().to_string()),
                ("id", channel.id().to_string()),
            ],
            size: channel.range().size(),
            members: members.collect(),
        }
    }
}

impl MetricsFacts {
    /// Collects the current data.
    pub(crate) fn of(registry: &crate::registry::Registry, stock: &Stock) -> Self {
        let instance = |guest| InstanceFacts::of(guest, registry.memory());
        Self {
            pool: objects::pool_of(registry),
            allocations: registry.pool().log().counts().clone(),
            instances: registry.guests().map(instance).collect(),
            channels: registry.channels().map(ChannelFacts::of).collect(),
            boots: registry.boots().clone(),
            stock: (
                stock.pids().len() as u64,
                stock.wanted() as u64,
                stock.counters(),
            ),
        }
    }
}

/// Renders `facts`, and the counters of the image cache. It reads the resource
/// usage of instances, so it must run on a thread that may block.
///
/// # Errors
/// Never fails, since writing to a string cannot fail.
pub fn render(facts: MetricsFacts, images: CacheCounters) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("mkvmm");
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The VMM", version);
    let started: Gauge<f64, AtomicU64> = Gauge::default();
    started.set(Duration::from_millis(timeline::start_unix_ms()).as_secs_f64());
    let help = "Time at which the VMM started, since 1970";
    registry.register_with_unit("start_time", help, Unit::Seconds, started);
    register_pool(&mut registry, &facts.pool);
    register_allocations(&mut registry, &facts.allocations);
    register_states(&mut registry, &facts.instances);
    register_devices(&mut registry, &facts.instances);
    let rows = Rows::read(facts.instances);
    registry.register_collector(Box::new(rows));
    register_channels(&mut registry, &facts.channels);
    registry.register_with_unit(
        "boot_stage",
        "Time between two stages of a boot",
        Unit::Seconds,
        facts.boots.family().clone(),
    );
    register_stock(&mut registry, facts.stock);
    register_images(&mut registry, images);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    // Gauges are signed; no value here reaches 2^63.
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn register_pool(registry: &mut Registry, pool: &Pool) {
    for (name, help, value) in [
        ("pool_size", "Bytes of the pool", pool.range.size),
        ("pool_avail", "Free bytes of the pool", pool.avail),
        ("pool_used", "Used bytes of the pool", pool.used),
        (
            "pool_largest_free",
            "The longest free extent of the pool",
            pool.largest_free,
        ),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, gauge(value));
    }
    let extents = gauge(pool.free_extents);
    registry.register("pool_free_extents", "Free extents of the pool", extents);
}

fn register_allocations(registry: &mut Registry, counts: &BTreeMap<CountKey, u64>) {
    let (allocations, frees) = (Counters::default(), Counters::default());
    let labels = |is_main: bool, outcome: Outcome| {
        let pool = if is_main { "main" } else { "instance" };
        vec![("pool", pool.to_owned()), ("outcome", outcome.to_string())]
    };
    for is_main in [true, false] {
        // Create these now, so that they are exported even at zero; refusals
        // are added when they occur.
        drop(allocations.get_or_create(&labels(is_main, Outcome::Done)));
        drop(frees.get_or_create(&labels(is_main, Outcome::Done)));
    }
    for ((op, is_main, outcome), count) in counts {
        let labels = labels(*is_main, *outcome);
        let family = match op {
            Op::Alloc => &allocations,
            Op::Free => &frees,
        };
        family.get_or_create(&labels).inc_by(*count);
    }
    let help = "Allocations in the main pool and in instances, by outcome";
    registry.register("pool_allocations", help, allocations);
    let help = "Freed allocations, by outcome";
    registry.register("pool_frees", help, frees);
}

fn register_stock(registry: &mut Registry, stock: (u64, u64, StockCounters)) {
    let (ready, wanted, counters) = stock;
    let help = "Workers that wait for a guest";
    registry.register("warm_workers", help, gauge(ready));
    let help = "Workers that are to wait for a guest";
    registry.register("warm_workers_wanted", help, gauge(wanted));
    let ends = Counters::default();
    for (result, count) in [
        ("taken", counters.taken),
        ("given-back", counters.given_back),
        ("lost", counters.lost),
    ] {
        let labels = vec![("result", result.to_owned())];
        ends.get_or_create(&labels).inc_by(count);
    }
    let help = "Workers that no longer wait for a guest, by result";
    registry.register("warm_workers_ended", help, ends);
    let help = "Boots that found no worker waiting";
    registry.register("warm_workers_missed", help, counter(counters.missed));
}

fn register_states(registry: &mut Registry, all: &[InstanceFacts]) {
    let states = Gauges::default();
    for state in STATES {
        let count = all.iter().filter(|one| one.state == state).count();
        let labels = vec![("state", state.to_string())];
        states
            .get_or_create(&labels)
            .inc_by(count.try_into().unwrap_or(i64::MAX));
    }
    registry.register("instances", "Instances by state", states);
}

/// The counters of a queue, in the order in which a board has them: the name,
/// the description, and whether it counts bytes.
const QUEUE_COUNTERS: [(&str, &str, bool); board::QUEUE_COUNTERS] = [
    ("instance_device_kicks", "Times that a driver rang", false),
    (
        "instance_device_requests",
        "Requests that were returned",
        false,
    ),
    (
        "instance_device_read",
        "Data of requests from the guest",
        true,
    ),
    (
        "instance_device_written",
        "Data of requests to the guest",
        true,
    ),
    ("instance_device_interrupts", "Interrupts of a queue", false),
    (
        "instance_device_dropped",
        "Requests or frames that were dropped",
        false,
    ),
    (
        "instance_device_failed",
        "Requests answered with an error",
        false,
    ),
];

/// The operations of a disk, and the reasons for which a network device drops frames,
/// in the order in which a board has them.
const OPERATIONS: [&str; 4] = ["read", "write", "flush", "discard"];
const REASONS: [&str; 6] = ["malformed", "foreign", "unknown", "full", "down", "long"];

/// What only some kinds of devices count.
#[derive(Default)]
struct OwnCounters {
    operations: Counters,
    read: Counters,
    written: Counters,
    drops: Counters,
}

impl OwnCounters {
    fn count(&self, device: &DeviceFacts, labels: &Labels) {
        let add = |family: &Counters, label, values: &[&str], counts: &[u64]| {
            for (value, count) in values.iter().zip(counts) {
                let mut labels = labels.clone();
                labels.push((label, (*value).to_owned()));
                family.get_or_create(&labels).inc_by(*count);
            }
        };
        let own = &device.counts.own;
        match device.spec {
            DeviceSpec::Rng | DeviceSpec::Console { .. } => {}
            DeviceSpec::Disk(_) => {
                add(&self.operations, "operation", &OPERATIONS, own);
                let [_, _, _, _, read, written, _] = *own;
                self.read.get_or_create(labels).inc_by(read);
                self.written.get_or_create(labels).inc_by(written);
            }
            DeviceSpec::Net(_) => add(&self.drops, "reason", &REASONS, own),
        }
    }

    fn register(self, registry: &mut Registry) {
        let help = "Operations of a disk that succeeded";
        registry.register("instance_disk_operations", help, self.operations);
        let help = "Bytes read from a disk";
        registry.register_with_unit("instance_disk_read", help, Unit::Bytes, self.read);
        let help = "Bytes written to a disk";
        registry.register_with_unit("instance_disk_written", help, Unit::Bytes, self.written);
        let help = "Frames that a network device has dropped, by reason";
        registry.register("instance_net_dropped", help, self.drops);
    }
}

fn register_channels(registry: &mut Registry, all: &[ChannelFacts]) {
    let (sizes, presence, boots) = (Gauges::default(), Gauges::default(), Counters::default());
    for one in all {
        let size = i64::try_from(one.size).unwrap_or(i64::MAX);
        sizes.get_or_create(&one.labels).set(size);
        for (name, is_present, count) in &one.members {
            let mut labels = one.labels.clone();
            labels.push(("member", name.clone()));
            presence.get_or_create(&labels).set((*is_present).into());
            boots.get_or_create(&labels).inc_by((*count).into());
        }
    }
    let help = "Memory of a channel";
    registry.register_with_unit("channel_memory", help, Unit::Bytes, sizes);
    let help = "Whether a member's guest has the memory of a channel: 1 or 0";
    registry.register("channel_member_present", help, presence);
    let help = "Times that a member got the memory of a channel";
    registry.register("channel_member_boots", help, boots);
}

fn register_devices(registry: &mut Registry, all: &[InstanceFacts]) {
    let faults = Counters::default();
    let own = OwnCounters::default();
    let mut families: Vec<Counters> = QUEUE_COUNTERS.map(|_| Counters::default()).to_vec();
    for one in all {
        for device in &one.devices {
            let mut labels = one.labels();
            labels.push(("device", device.address.clone()));
            own.count(device, &labels);
            labels.push(("kind", device.spec.key().to_owned()));
            faults.get_or_create(&labels).inc_by(device.counts.faults);
            for (queue, counts) in device
                .counts
                .queues
                .iter()
                .take(device.spec.queues())
                .enumerate()
            {
                let mut labels = labels.clone();
                labels.push(("queue", queue.to_string()));
                for (family, count) in families.iter_mut().zip(counts) {
                    family.get_or_create(&labels).inc_by(*count);
                }
            }
        }
    }
    let help = "Times that a device was stopped because its driver, or the host, failed it";
    registry.register("instance_device_faults", help, faults);
    own.register(registry);
    for ((name, help, is_bytes), family) in QUEUE_COUNTERS.into_iter().zip(families) {
        match is_bytes {
            true => registry.register_with_unit(name, help, Unit::Bytes, family),
            false => registry.register(name, help, family),
        }
    }
}

fn register_images(registry: &mut Registry, images: CacheCounters) {
    let (help, entries) = ("Cached images", gauge(images.entries));
    registry.register("image_cache_entries", help, entries);
    let (help, held) = ("Bytes of cached images", gauge(images.bytes_held));
    registry.register_with_unit("image_cache_size", help, Unit::Bytes, held);
    let requests = Counters::default();
    for (result, count) in [
        ("hit-by-file", images.hits_by_file),
        ("hit-by-content", images.hits_by_content),
        ("miss", images.misses),
    ] {
        let labels = vec![("result", result.to_owned())];
        requests.get_or_create(&labels).inc_by(count);
    }
    let help = "Requests for images, by result";
    registry.register("image_cache_requests", help, requests);
    let (help, read) = ("Bytes of images read", counter(images.bytes_read));
    registry.register_with_unit("image_cache_read", help, Unit::Bytes, read);
    for (name, help, count) in [
        (
            "image_cache_decompressions",
            "Kernels unpacked",
            images.decompressions,
        ),
        (
            "image_cache_evictions",
            "Images evicted to stay below the limit",
            images.evictions,
        ),
    ] {
        registry.register(name, help, counter(count));
    }
}

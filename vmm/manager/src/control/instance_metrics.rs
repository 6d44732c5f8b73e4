//! Metrics that each instance has. They are encoded one after the other from what was
//! collected: tables of all their series, which other metrics have, would take most of
//! the time where there are thousands of instances.

use std::fmt;

use mkvmm_api::devices::{Device, DeviceSpec};
use mkvmm_base::ExitKind;
use mkvmm_base::state::State;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_wire::shared::board::DeviceCounts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::guest::Guest;
use crate::usage::{Footprint, Usage};

/// The names and values of a series.
pub(super) type Labels = Vec<(&'static str, String)>;

/// The data of one instance for the metrics.
#[derive(Debug)]
pub(super) struct InstanceFacts {
    pub(super) name: String,
    pub(super) id: u32,
    pub(super) state: State,
    pub(super) memory: u64,
    pub(super) avail: u64,
    pub(super) chunks: u64,
    pub(super) vcpus: u64,
    pub(super) violations: u64,
    pub(super) printed: u64,
    pub(super) exits: Vec<(&'static str, u64)>,
    pub(super) devices: Vec<DeviceFacts>,
    pub(super) footprint: Footprint,
}

/// The counters of a device for the metrics.
#[derive(Debug)]
pub(super) struct DeviceFacts {
    pub(super) address: String,
    pub(super) spec: DeviceSpec,
    pub(super) counts: DeviceCounts,
}

/// Returns the counters of all devices, as their worker says.
fn devices(guest: &Guest) -> Vec<DeviceFacts> {
    let specs = guest.config().spec.devices();
    let device = |(index, spec): (usize, &DeviceSpec)| {
        let slot = u8::try_from(index + 1).unwrap_or(u8::MAX);
        DeviceFacts {
            address: Device::address_of(slot),
            spec: spec.clone(),
            counts: guest.status().device(index),
        }
    };
    specs.iter().enumerate().map(device).collect()
}

impl InstanceFacts {
    pub(super) fn of(guest: &Guest, memory: &ReservationConfig) -> Self {
        Self {
            footprint: guest.footprint(memory),
            name: guest.name().to_string(),
            id: guest.id().0,
            state: guest.state(),
            memory: guest.sub_pool().size(),
            avail: guest.sub_pool().avail(),
            chunks: guest.regions().len() as u64,
            vcpus: guest.config().spec.cpus.into(),
            violations: guest.status().violations(),
            printed: guest.console().printed(),
            exits: exits(guest),
            devices: devices(guest),
        }
    }

    pub(super) fn labels(&self) -> Labels {
        vec![("name", self.name.clone()), ("id", self.id.to_string())]
    }
}

/// Returns the totals of all vCPUs, by the names of the kinds.
fn exits(guest: &Guest) -> Vec<(&'static str, u64)> {
    let cpus = 0..guest.config().cpus();
    let vcpus: Vec<_> = cpus.map(|cpu| guest.status().exits(cpu)).collect();
    let of_kind = |(kind, name): (ExitKind, &'static str)| {
        let counts = vcpus.iter().filter_map(|counts| counts.get(kind as usize));
        (name, counts.sum())
    };
    ExitKind::ALL.into_iter().map(of_kind).collect()
}

/// One instance with what it uses.
#[derive(Debug)]
struct Row {
    labels: Labels,
    facts: InstanceFacts,
    usage: Usage,
}

/// All instances, in the order of their numbers.
#[derive(Debug)]
pub(super) struct Rows(Vec<Row>);

impl Rows {
    /// Reads what the instances use. It may block.
    pub(super) fn read(all: Vec<InstanceFacts>) -> Self {
        let row = |facts: InstanceFacts| Row {
            labels: facts.labels(),
            usage: facts.footprint.read(),
            facts,
        };
        Self(all.into_iter().map(row).collect())
    }

    /// Encodes one value of each instance.
    fn encode_one(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, unit, value): Described,
    ) -> fmt::Result {
        let kind = match value {
            Value::Gauge(_) => MetricType::Gauge,
            Value::Counter(_) | Value::Seconds(_) => MetricType::Counter,
        };
        let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for row in &self.0 {
            let mut series = metric.encode_family(&row.labels)?;
            match value {
                Value::Gauge(of) => {
                    // Gauges are signed; no value here reaches 2^63.
                    series.encode_gauge(&i64::try_from(of(row)).unwrap_or(i64::MAX))?;
                }
                Value::Counter(of) => count(&mut series, of(row))?,
                Value::Seconds(of) => {
                    series.encode_counter::<NoLabelSet, f64, u64>(&of(row), None)?;
                }
            }
        }
        Ok(())
    }
}

fn count(series: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    series.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

/// How a value of an instance is found.
#[derive(Clone, Copy)]
enum Value {
    Gauge(fn(&Row) -> u64),
    Counter(fn(&Row) -> u64),
    Seconds(fn(&Row) -> f64),
}

/// A metric: its name, what it is, its unit and its value.
type Described = (&'static str, &'static str, Option<Unit>, Value);

/// Returns the metrics that have one value for each instance.
fn described() -> [Described; 9] {
    use Value::{Counter, Gauge, Seconds};
    let bytes = || Some(Unit::Bytes);
    [
        (
            "instance_memory",
            "Memory of an instance",
            bytes(),
            Gauge(|row| row.facts.memory),
        ),
        (
            "instance_avail",
            "Memory that no image and no allocation uses",
            bytes(),
            Gauge(|row| row.facts.avail),
        ),
        (
            "instance_chunks",
            "Regions of the memory of an instance",
            None,
            Gauge(|row| row.facts.chunks),
        ),
        (
            "instance_vcpus",
            "The vCPUs of an instance",
            None,
            Gauge(|row| row.facts.vcpus),
        ),
        (
            "instance_violations",
            "Accesses to memory that an instance does not own",
            None,
            Counter(|row| row.facts.violations),
        ),
        (
            "instance_console",
            "Output on the console of an instance",
            bytes(),
            Counter(|row| row.facts.printed),
        ),
        (
            "instance_cpu",
            "CPU time of an instance's processes, including its guest",
            Some(Unit::Seconds),
            Seconds(|row| row.usage.cpu_time.as_secs_f64()),
        ),
        (
            "instance_memory_resident",
            "Host memory that the memory of an instance occupies",
            bytes(),
            Gauge(|row| row.usage.resident),
        ),
        (
            "instance_process_memory",
            "Further host memory that an instance's process uses",
            bytes(),
            Gauge(|row| row.usage.process.unwrap_or(0)),
        ),
    ]
}

impl Collector for Rows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.0.is_empty() {
            // Metrics without a series are left out.
            return Ok(());
        }
        for one in described() {
            self.encode_one(&mut encoder, one)?;
        }
        let help = "VM exits of an instance's vCPUs to the VMM, by kind";
        let kind = MetricType::Counter;
        let mut metric = encoder.encode_descriptor("instance_exits", help, None, kind)?;
        for row in &self.0 {
            for (kind, value) in &row.facts.exits {
                let labels = (row.labels.as_slice(), [("kind", *kind)]);
                count(&mut metric.encode_family(&labels)?, *value)?;
            }
        }
        Ok(())
    }
}

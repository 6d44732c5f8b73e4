//! OpenMetrics text.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::control::objects::MetricsFacts;

/// The content type that scrapers ask for.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(String, String)>;

/// Every state, so that a scraper sees a zero rather than nothing.
const STATES: [&str; 6] = ["ready", "loaded", "active", "paused", "stopped", "failed"];

/// Renders `facts`.
///
/// # Errors
/// Never: writing to a string does not fail.
pub fn render(facts: &MetricsFacts) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("mkvmm");
    let pool = &facts.pool;
    for (name, help, value) in [
        ("pool_size", "Bytes of the pool", pool.size),
        ("pool_avail", "Free bytes of the pool", pool.avail),
        (
            "pool_largest_free",
            "The longest free extent of the pool",
            pool.largest_free,
        ),
    ] {
        let gauge: Gauge = Gauge::default();
        set(&gauge, value);
        registry.register_with_unit(name, help, Unit::Bytes, gauge);
    }
    let extents: Gauge = Gauge::default();
    set(&extents, pool.free_extents);
    registry.register("pool_free_extents", "Free extents of the pool", extents);

    let mut states: BTreeMap<&str, u64> = STATES.into_iter().map(|s| (s, 0)).collect();
    let instances = Family::<Labels, Gauge>::default();
    let memory = Family::<Labels, Gauge>::default();
    let violations = Family::<Labels, Gauge>::default();
    let printed = Family::<Labels, Gauge>::default();
    for instance in &facts.instances {
        if let Some(count) = states.get_mut(instance.state.as_str()) {
            *count += 1;
        }
        let labels = vec![("instance".to_owned(), instance.name.clone())];
        set(&memory.get_or_create(&labels), instance.memory);
        set(&violations.get_or_create(&labels), instance.violations);
        set(&printed.get_or_create(&labels), instance.printed);
    }
    for (state, count) in states {
        let labels = vec![("state".to_owned(), state.to_owned())];
        set(&instances.get_or_create(&labels), count);
    }
    registry.register("instances", "Instances by state", instances);
    registry.register_with_unit(
        "instance_memory",
        "Memory of an instance",
        Unit::Bytes,
        memory,
    );
    registry.register(
        "instance_violations",
        "Accesses of an instance to what is not its own",
        violations,
    );
    registry.register_with_unit(
        "instance_console",
        "Output of an instance so far",
        Unit::Bytes,
        printed,
    );
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn set(gauge: &Gauge, value: u64) {
    // The gauges are signed; nothing here reaches 2^63.
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

//! The durations between stages of boots, over all instances of a VMM.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use mkvmm_base::timeline::{Spans, Stage};

/// The measured spans, each from one stage to another.
const SPANS: [(Stage, Stage); 6] = [
    (Stage::Created, Stage::Loaded),
    (Stage::Placed, Stage::Loaded),
    (Stage::Loaded, Stage::Exec),
    (Stage::Exec, Stage::FirstExit),
    (Stage::Exec, Stage::FirstOutput),
    (Stage::Exec, Stage::Ended),
];

/// The labels `from` and `to`, with the names of the stages.
type Labels = [(&'static str, &'static str); 2];

/// A histogram for each span, labelled by `from` and `to`.
pub type SpanFamily = Family<Labels, Histogram, fn() -> Histogram>;

/// The histograms of one VMM. Clones share them.
#[derive(Debug, Clone)]
pub struct BootSpans(SpanFamily);

fn labels(from: Stage, to: Stage) -> Labels {
    [("from", from.name()), ("to", to.name())]
}

/// Creates a histogram with upper bounds from 4 µs to 4 s, each four times the
/// previous one, then 10 s, a minute, ten minutes and an hour.
fn histogram() -> Histogram {
    let short = exponential_buckets(4e-6, 4.0, 11);
    Histogram::new(short.chain([10.0, 60.0, 600.0, 3600.0]))
}

impl Default for BootSpans {
    fn default() -> Self {
        let family = SpanFamily::new_with_constructor(histogram);
        for (from, to) in SPANS {
            // Create it now, so that it is exported even while empty.
            drop(family.get_or_create(&labels(from, to)));
        }
        Self(family)
    }
}

impl Spans for BootSpans {
    fn reached(&self, stage: Stage, since: &dyn Fn(Stage) -> Option<u64>) {
        for (from, to) in SPANS.into_iter().filter(|(_, to)| *to == stage) {
            if let Some(ns) = since(from) {
                let seconds = Duration::from_nanos(ns).as_secs_f64();
                self.0.get_or_create(&labels(from, to)).observe(seconds);
            }
        }
    }
}

impl BootSpans {
    /// Returns the histograms, for the registry of metrics.
    pub fn family(&self) -> &SpanFamily {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use mkvmm_base::timeline::Timeline;

    #[test]
    fn boots_are_measured_once_they_count() {
        let (spans, timeline) = (BootSpans::default(), Timeline::default());
        let count = |from: &'static str, to: &'static str| {
            let family = spans.family().get_or_create(&[("from", from), ("to", to)]);
            let mut text = String::new();
            let mut registry = prometheus_client::registry::Registry::default();
            registry.register("span", "", family.clone());
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let line = text.lines().find_map(|l| l.strip_prefix("span_count "));
            line.unwrap().parse::<u64>().unwrap()
        };
        timeline.reach(Stage::Created);
        timeline.reach(Stage::Loaded);
        assert_eq!(count("created", "loaded"), 0);
        timeline.measure_with(Arc::new(spans.clone()));
        assert_eq!(count("created", "loaded"), 1);
        for boots in 1..3 {
            for stage in [Stage::Exec, Stage::FirstExit, Stage::FirstExit] {
                timeline.reach(stage);
            }
            assert_eq!(count("exec", "first_exit"), boots);
            timeline.restart();
            timeline.reach(Stage::Loaded);
        }
        assert_eq!(count("created", "loaded"), 1);
        assert_eq!(count("placed", "loaded"), 0);
    }
}

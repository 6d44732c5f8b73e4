//! How long boots took, from stage to stage, over all instances of a VMM.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::instance::timeline::Stage;

/// What is measured: from one stage to another.
const SPANS: [(Stage, Stage); 6] = [
    (Stage::Created, Stage::Loaded),
    (Stage::Placed, Stage::Loaded),
    (Stage::Loaded, Stage::Exec),
    (Stage::Exec, Stage::FirstExit),
    (Stage::Exec, Stage::FirstOutput),
    (Stage::Exec, Stage::Ended),
];

/// `from` and `to`, with the names of the stages.
type Labels = [(&'static str, &'static str); 2];

/// A histogram for each span, by `from` and `to`.
pub type SpanFamily = Family<Labels, Histogram, fn() -> Histogram>;

/// The histograms of one VMM. Clones share them.
#[derive(Debug, Clone)]
pub struct BootSpans(SpanFamily);

fn labels(from: Stage, to: Stage) -> Labels {
    [("from", from.name()), ("to", to.name())]
}

/// Upper bounds: from 4 µs, each four times the one before, to 4 s; then 10 s,
/// a minute, ten, an hour.
fn histogram() -> Histogram {
    let short = exponential_buckets(4e-6, 4.0, 11);
    Histogram::new(short.chain([10.0, 60.0, 600.0, 3600.0]))
}

impl Default for BootSpans {
    fn default() -> Self {
        let family = SpanFamily::new_with_constructor(histogram);
        for (from, to) in SPANS {
            // There from the beginning, with nothing in them.
            drop(family.get_or_create(&labels(from, to)));
        }
        Self(family)
    }
}

impl BootSpans {
    /// A stage was reached: measures the spans that end there. `since` says
    /// how long ago another was, in nanoseconds, if it was.
    pub fn reached(&self, stage: Stage, since: impl Fn(Stage) -> Option<u64>) {
        for (from, to) in SPANS.into_iter().filter(|(_, to)| *to == stage) {
            if let Some(ns) = since(from) {
                let seconds = Duration::from_nanos(ns).as_secs_f64();
                self.0.get_or_create(&labels(from, to)).observe(seconds);
            }
        }
    }

    /// The histograms.
    pub fn family(&self) -> &SpanFamily {
        &self.0
    }
}

//! The format of a trace's lines, as parsed by serde.

use serde::de::{Deserializer, Error, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line: an operation and Linux's answer.
#[derive(Debug, Deserialize)]
pub struct Line {
    /// The operation that was recorded.
    #[serde(flatten)]
    pub op: Op,
    /// The answer of Linux to it.
    #[serde(flatten)]
    pub expected: Expected,
}

/// One operation. Sizes are numbers of bytes, addresses are written as `"0x…"`.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "the names are the operations' and fields' names in the trace"
)]
pub enum Op {
    Create {
        pool: String,
        order: i64,
    },
    Add {
        pool: String,
        #[serde(deserialize_with = "address")]
        base: u64,
        size: u64,
    },
    Algo {
        pool: String,
        algo: AlgoName,
    },
    Alloc(Alloc),
    Free {
        pool: String,
        #[serde(deserialize_with = "address")]
        addr: u64,
        size: u64,
    },
    Avail {
        pool: String,
    },
    Size {
        pool: String,
    },
    HasAddr {
        pool: String,
        #[serde(deserialize_with = "address")]
        addr: u64,
        size: u64,
    },
    Destroy {
        pool: String,
    },
    MkSetup {
        param: Option<String>,
        #[serde(default)]
        reserve_fails: bool,
    },
    MkAlloc {
        size: u64,
    },
    MkFree {
        #[serde(deserialize_with = "address")]
        addr: u64,
        size: u64,
    },
    MkAvail {},
    InstanceCreate {
        id: i64,
        size: u64,
        order: i64,
    },
    InstanceDestroy {
        id: i64,
    },
    InstanceAvail {
        id: i64,
    },
    InstanceAlloc {
        id: i64,
        size: u64,
        #[serde(deserialize_with = "wide")]
        align: u64,
    },
    InstanceFree {
        id: i64,
        #[serde(deserialize_with = "address")]
        addr: u64,
        size: u64,
    },
}

/// The operation `alloc`, with the algorithm it may name.
#[derive(Debug, Deserialize)]
pub struct Alloc {
    /// The name of the pool.
    pub pool: String,
    /// The size in bytes.
    pub size: u64,
    /// The algorithm of this call, instead of the pool's own.
    pub algo: Option<AlgoName>,
    /// The alignment in bytes, for `first_fit_align`.
    #[serde(default, deserialize_with = "wide")]
    pub align: u64,
    /// The offset from the start of a chunk in bytes, for `fixed`.
    #[serde(default, deserialize_with = "wide")]
    pub offset: u64,
}

/// An algorithm by Linux's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are Linux's")]
pub enum AlgoName {
    FirstFit,
    FirstFitAlign,
    FirstFitOrderAlign,
    BestFit,
    Fixed,
}

impl Op {
    /// Returns the kind of the operation, by which times are grouped.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Create { .. } => "create",
            Op::Add { .. } => "add",
            Op::Algo { .. } => "algo",
            Op::Alloc(alloc) => match alloc.algo {
                None => "alloc",
                Some(AlgoName::FirstFit) => "alloc first_fit",
                Some(AlgoName::FirstFitAlign) => "alloc first_fit_align",
                Some(AlgoName::FirstFitOrderAlign) => "alloc first_fit_order_align",
                Some(AlgoName::BestFit) => "alloc best_fit",
                Some(AlgoName::Fixed) => "alloc fixed",
            },
            Op::Free { .. } => "free",
            Op::Avail { .. } => "avail",
            Op::Size { .. } => "size",
            Op::HasAddr { .. } => "has_addr",
            Op::Destroy { .. } => "destroy",
            Op::MkSetup { .. } => "mk_setup",
            Op::MkAlloc { .. } => "mk_alloc",
            Op::MkFree { .. } => "mk_free",
            Op::MkAvail {} => "mk_avail",
            Op::InstanceCreate { .. } => "instance_create",
            Op::InstanceDestroy { .. } => "instance_destroy",
            Op::InstanceAvail { .. } => "instance_avail",
            Op::InstanceAlloc { .. } => "instance_alloc",
            Op::InstanceFree { .. } => "instance_free",
        }
    }
}

/// Linux's answer: `want`, and the other recorded details.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// The answer itself: an address, a number, true or false, or a word; null for failure.
    #[serde(default)]
    pub want: Value,
    /// The address of the pool, if the parameter named one.
    #[serde(default)]
    start: Option<Value>,
    /// The chunks of an instance, last obtained first.
    #[serde(default)]
    chunks: Option<Value>,
    /// The size of the pool after `mk_setup`; in all other lines the operation's own argument.
    #[serde(default)]
    size: Option<Value>,
}

/// The answer of the pool under test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The answer itself, as in [`Expected::want`].
    pub want: Value,
    /// The address of the pool, after `mk_setup` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Value>,
    /// The size of the pool in bytes, after `mk_setup` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Value>,
    /// The chunks of the instance, after `instance_create` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Value>,
}

impl From<Value> for Answer {
    fn from(want: Value) -> Self {
        Self {
            want,
            start: None,
            size: None,
            chunks: None,
        }
    }
}

impl Expected {
    /// Compares `answer` with the recorded answer. Returns `None` if they are equal, otherwise the
    /// answer, ready to print.
    #[must_use]
    pub fn differs_from(&self, answer: &Answer) -> Option<Value> {
        // A detail that was not recorded is not compared.
        let same = |recorded: &Option<Value>, ours: &Option<Value>| match (recorded, ours) {
            (Some(recorded), Some(ours)) => recorded == ours,
            _ => true,
        };
        let missing_detail = (self.start.is_some() && answer.start.is_none())
            || (self.chunks.is_some() && answer.chunks.is_none());
        if self.want == answer.want
            && !missing_detail
            && same(&self.start, &answer.start)
            && same(&self.size, &answer.size)
            && same(&self.chunks, &answer.chunks)
        {
            return None;
        }
        let plain = answer.start.is_none() && answer.size.is_none() && answer.chunks.is_none();
        if plain {
            Some(answer.want.clone())
        } else {
            serde_json::to_value(answer).ok()
        }
    }
}

/// Reads `"0x…"` as a number.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text
        .strip_prefix("0x")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    digits.ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &"an address, \"0x…\""))
}

/// Reads a number that may be negative because it was signed in C.
fn wide<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Wide {
        Unsigned(u64),
        Signed(i64),
    }
    Ok(match Wide::deserialize(deserializer)? {
        Wide::Unsigned(value) => value,
        Wide::Signed(value) => value.cast_unsigned(),
    })
}

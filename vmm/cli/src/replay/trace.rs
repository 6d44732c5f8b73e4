//! What a line of a trace may hold, as serde reads it.

use serde::de::{Deserializer, Error, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line: an operation and what Linux answered.
#[derive(Debug, Deserialize)]
pub struct Line {
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
    /// What Linux answered.
    #[serde(flatten)]
    pub expected: Expected,
}

/// One operation; sizes are bytes, addresses are bytes written as `"0x…"`.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
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

/// `alloc`, with the algorithm it may name for itself.
#[derive(Debug, Deserialize)]
pub struct Alloc {
    /// The pool's name.
    pub pool: String,
    /// Bytes.
    pub size: u64,
    /// Overrides the pool's algorithm for this call.
    pub algo: Option<AlgoName>,
    /// Bytes, for `first_fit_align`.
    #[serde(default, deserialize_with = "wide")]
    pub align: u64,
    /// Bytes from the start of a chunk, for `fixed`.
    #[serde(default, deserialize_with = "wide")]
    pub offset: u64,
}

/// An algorithm by Linux's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlgoName {
    FirstFit,
    FirstFitAlign,
    FirstFitOrderAlign,
    BestFit,
    Fixed,
}

impl Op {
    /// What the times are grouped by.
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

/// Linux's answer: `want`, and what else the line records of it.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// The answer itself; an address, a number, a truth or a word, null for failure.
    #[serde(default)]
    pub want: Value,
    /// Where the pool lies, if the parameter said so.
    #[serde(default)]
    start: Option<Value>,
    /// The chunks of an instance, last obtained first.
    #[serde(default)]
    chunks: Option<Value>,
    /// The size of the pool; in every other line the operation's own argument.
    #[serde(default)]
    size: Option<Value>,
}

/// What our pool answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The answer itself.
    pub want: Value,
    /// `mk_setup` only: where the pool lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Value>,
    /// `mk_setup` only: how large it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Value>,
    /// `instance_create` only: its chunks.
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
    /// `None` if `answer` is what the line records; otherwise what differs, ready to print.
    #[must_use]
    pub fn differs_from(&self, answer: &Answer) -> Option<Value> {
        // A line that does not record a detail leaves it open.
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

/// `"0x…"` as a number.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text
        .strip_prefix("0x")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    digits.ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &"an address, \"0x…\""))
}

/// A number that C may have had as a signed one.
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

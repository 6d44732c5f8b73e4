//! What requests carry.
//!
//! Bodies that describe instances become keys and values, for which
//! [`GuestSpec`] is the one reader, as for `--guest` and fleet files.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};

use crate::control::number::{optional, whole};
use crate::spec::{GuestSpec, INITRD, SpecError};

/// Keys of [`crate::spec::KEYS`] with their values.
pub type Pairs = Vec<(&'static str, String)>;

/// One path, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Paths {
    /// One.
    One(String),
    /// Several, in order.
    Several(Vec<String>),
}

impl Paths {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Several(paths) => paths,
        }
    }
}

/// What `POST /v1/instances` takes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBody {
    /// 1 to 32 letters, digits, `.`, `_`, `-`, the first a letter or digit.
    #[schema(pattern = "^[0-9A-Za-z][0-9A-Za-z._-]{0,31}$", example = "web")]
    pub name: String,
    /// Bytes; rounded up to whole granules. At most 2^52: no processor has
    /// more address bits.
    #[serde(deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 4_503_599_627_370_496_u64, example = 33_554_432)]
    pub memory: u64,
    /// vCPUs; 1 when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional"
    )]
    #[schema(minimum = 1, maximum = 64)]
    pub cpus: Option<u8>,
    /// log2 of its granule; the pool's own when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional"
    )]
    #[schema(minimum = 12, maximum = 63)]
    pub order: Option<u32>,
    /// Host processors that its vCPUs may use, as in `0-3,8`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$")]
    pub cpus_affinity: Option<String>,
    /// What follows when it touches what is not its own: `log` or `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(log|stop)$")]
    pub violation: Option<String>,
    /// What follows when it reboots: `stop` or `restart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(stop|restart)$")]
    pub on_reboot: Option<String>,
    /// What follows when it panics: `stop` or `restart`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(stop|restart)$")]
    pub on_panic: Option<String>,
    /// A kernel to load at once: a path, or `probe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 4095)]
    pub kernel: Option<String>,
    /// An initramfs to load with it, or several, one behind the other; needs
    /// `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Paths>,
    /// How the kernel starts: `elf`, unpacked by the VMM, or `bzimage`, which
    /// unpacks itself in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(elf|bzimage)$")]
    pub boot: Option<String>,
    /// The kernel's command line; needs `kernel`, which may take less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[^\\x00]*$")]
    pub cmdline: Option<String>,
    /// A file that keeps all that it prints, emptied when it first boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 4095)]
    pub console_log: Option<String>,
}

impl CreateBody {
    /// What `pairs` say.
    ///
    /// # Errors
    /// What [`GuestSpec`] finds wrong with them.
    pub fn from_pairs(pairs: &[(&'static str, String)]) -> Result<Self, SpecError> {
        let spec = GuestSpec::from_pairs(pairs.iter().cloned())?;
        let all = |key| pairs.iter().filter(move |(k, _)| *k == key);
        let one = |key| all(key).map(|(_, value)| value.clone()).next();
        Ok(Self {
            name: spec.name.map(|name| name.to_string()).unwrap_or_default(),
            memory: spec.memory,
            cpus: one("cpus").map(|_| spec.cpus),
            order: spec.order,
            cpus_affinity: one("cpus-affinity"),
            violation: one("violation"),
            on_reboot: one("on-reboot"),
            on_panic: one("on-panic"),
            kernel: one("kernel"),
            initrd: paths(all(INITRD).map(|(_, path)| path.clone()).collect()),
            boot: one("boot"),
            cmdline: one("cmdline"),
            console_log: one("console-log"),
        })
    }

    /// The keys that are there.
    pub fn pairs(&self) -> Pairs {
        let mut pairs = vec![
            ("name", self.name.clone()),
            ("memory", self.memory.to_string()),
        ];
        let numbers = [("cpus", self.cpus.map(u32::from)), ("order", self.order)];
        let number = |(key, value): (_, Option<u32>)| Some((key, value?.to_string()));
        pairs.extend(numbers.into_iter().filter_map(number));
        pairs.extend(given([
            ("cpus-affinity", &self.cpus_affinity),
            ("violation", &self.violation),
            ("on-reboot", &self.on_reboot),
            ("on-panic", &self.on_panic),
            ("kernel", &self.kernel),
            ("boot", &self.boot),
            ("cmdline", &self.cmdline),
            ("console-log", &self.console_log),
        ]));
        pairs.extend(initrds(self.initrd.as_ref()));
        pairs
    }
}

fn given<const N: usize>(
    texts: [(&'static str, &Option<String>); N],
) -> impl Iterator<Item = (&'static str, String)> {
    let pairs = texts.into_iter();
    pairs.filter_map(|(key, text)| Some((key, text.clone()?)))
}

fn initrds(paths: Option<&Paths>) -> impl Iterator<Item = (&'static str, String)> {
    let paths = paths.map_or(&[][..], Paths::as_slice);
    paths.iter().map(|path| (INITRD, path.clone()))
}

/// As JSON has them: nothing for none.
pub fn paths(paths: Vec<String>) -> Option<Paths> {
    match <[String; 1]>::try_from(paths) {
        Ok([path]) => Some(Paths::One(path)),
        Err(paths) if paths.is_empty() => None,
        Err(paths) => Some(Paths::Several(paths)),
    }
}

/// What `POST /v1/plan` takes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanBody {
    /// The instances, in the order in which they would be made.
    pub instances: Vec<CreateBody>,
}

/// What `…/load` takes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadBody {
    /// A path, or `probe`.
    #[schema(min_length = 1, max_length = 4095, example = "probe")]
    pub kernel: String,
    /// An initramfs, or several, one behind the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Paths>,
    /// How the kernel starts: `elf`, unpacked by the VMM, or `bzimage`, which
    /// unpacks itself in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(elf|bzimage)$")]
    pub boot: Option<String>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[^\\x00]*$")]
    pub cmdline: Option<String>,
}

impl LoadBody {
    /// The keys that are there.
    pub fn pairs(&self) -> Pairs {
        let mut pairs = vec![("kernel", self.kernel.clone())];
        pairs.extend(given([("boot", &self.boot), ("cmdline", &self.cmdline)]));
        pairs.extend(initrds(self.initrd.as_ref()));
        pairs
    }
}

/// What `…/kill` takes; nothing at all is fine, too.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KillBody {
    /// End it at once, without its power button.
    #[serde(default)]
    pub force: bool,
    /// Milliseconds between the power button and force; 5000 when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional"
    )]
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 4_294_967_295_u64)]
    pub grace_ms: Option<u32>,
}

/// Largest size and alignment: no processor has more address bits.
pub const SIZE_MAX: u64 = 1 << 52;

/// The alignments there are, one by one: schemas know no powers.
fn alignments() -> Object {
    let powers = (0..=SIZE_MAX.trailing_zeros()).map(|order| Some(1_u64 << order));
    let values = [None, Some(0)].into_iter().chain(powers);
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Integer, Type::Null]))
        .description(Some(
            "A power of two, at most 2^52; none when absent, 0 or 1.",
        ))
        .enum_values(Some(values))
        .build()
}

/// What `…/allocations` takes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AllocBody {
    /// Bytes; rounded up to whole granules. At most 2^52.
    #[serde(deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 4_503_599_627_370_496_u64, example = 4096)]
    pub size: u64,
    /// A power of two, at most 2^52; none when absent, 0 or 1.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional"
    )]
    #[schema(schema_with = alignments)]
    pub align: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::KEYS;

    #[test]
    fn every_key_survives_the_way_to_the_server() {
        let value = |key| match key {
            "name" => "web",
            "memory" => "8M",
            "order" => "13",
            "cpus" => "2",
            "cpus-affinity" => "0",
            "violation" => "stop",
            "on-reboot" | "on-panic" => "restart",
            "boot" => "bzimage",
            _ => "/a/path",
        };
        let mut pairs: Pairs = KEYS
            .iter()
            .map(|&key| (key, value(key).to_owned()))
            .collect();
        pairs.push((INITRD, "/another".to_owned()));
        let body = CreateBody::from_pairs(&pairs).unwrap();
        let json = serde_json::to_string(&body).unwrap();
        let there: CreateBody = serde_json::from_str(&json).unwrap();
        let spec = |pairs: Pairs| GuestSpec::from_pairs(pairs).unwrap();
        assert_eq!(spec(there.pairs()), spec(pairs));
    }

    #[test]
    fn one_path_is_text_and_several_are_a_list() {
        let json = |list: &[&str]| {
            let list = list.iter().map(|&path| path.to_owned()).collect();
            serde_json::to_value(paths(list)).unwrap()
        };
        assert_eq!(json(&["a"]), "a");
        assert_eq!(json(&["a", "b"]), serde_json::json!(["a", "b"]));
        assert!(json(&[]).is_null());
    }
}

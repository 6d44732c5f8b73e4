//! The bodies of requests and their fields.

use std::path::PathBuf;

use serde::de::{Deserializer, Error, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::channel::ChannelBody;
use crate::number::{bounded, optional};
use crate::size::Size;
#[cfg(feature = "schema")]
use crate::source::Source;
use crate::source::optional_path;
use crate::spec::InstanceSpec;

/// The body of `POST /v1/instances`: an [`InstanceSpec`], or the object that
/// `GET` of an instance returned, of which only `spec` is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CreateBody(pub InstanceSpec);

impl<'de> Deserialize<'de> for CreateBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Which of the two it is depends on its keys, so read them all first.
        let mut value = Value::deserialize(deserializer)?;
        let Some(object) = value.as_object_mut() else {
            return Err(D::Error::invalid_type(
                Unexpected::Other("another type"),
                &"an instance",
            ));
        };
        let spec = object.remove("spec").unwrap_or(value);
        InstanceSpec::deserialize(spec)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// The body of `POST /v1/plan`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlanBody {
    /// The channels, which would be created before the instances, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<ChannelBody>,
    /// The instances, in the order in which they would be created.
    pub instances: Vec<CreateBody>,
}

/// The body of `POST /v1/upgrade`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct UpgradeBody {
    /// The absolute path of the new `mkvmm`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub binary: PathBuf,
}

/// The answer to `POST /v1/upgrade`: the new program has accepted the journal,
/// and takes over at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Upgrade {
    /// The number of the manager that ends now.
    pub manager: u32,
    /// What the new program says about the journal.
    pub check: String,
}

/// The body of `…/start`; an empty body stands for the defaults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StartBody {
    /// The cgroup below which the instance gets its own, in place of that of its
    /// specification and until its next start: a path, or `mine` for that of the
    /// client.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_path"
    )]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Source>))]
    pub cgroup: Option<PathBuf>,
}

/// The body of `…/kill`; an empty body stands for the defaults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KillBody {
    /// True to end the instance at once, without its power button.
    #[serde(default)]
    pub force: bool,
    /// The number of milliseconds between the power button and SIGKILL; 5000
    /// when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<u32, 0, 0xffff_ffff, _>"
    )]
    #[cfg_attr(feature = "schema", schema(value_type = Option<u64>, minimum = 0, maximum = 4_294_967_295_u64))]
    pub grace_ms: Option<u32>,
}

/// The body of `…/allocations`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AllocBody {
    /// The number of bytes, rounded up to whole granules.
    pub size: Size,
    /// The alignment: a power of two, at most 2^52; 0 and 1 mean any.
    #[serde(
        default,
        skip_serializing_if = "is_zero",
        deserialize_with = "bounded::<u64, 0, SIZE_MAX, _>"
    )]
    #[cfg_attr(feature = "schema", schema(schema_with = alignments))]
    pub align: u64,
}

/// The largest alignment, which is the largest size written as a number.
const SIZE_MAX: u64 = Size::MAX_NUMBER.bytes();

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(align: &u64) -> bool {
    *align == 0
}

#[cfg(feature = "schema")]
mod schema {
    use utoipa::openapi::RefOr;
    use utoipa::openapi::schema::{
        AnyOfBuilder, Object, ObjectBuilder, Ref, Schema, SchemaType, Type,
    };

    use super::{CreateBody, InstanceSpec, SIZE_MAX};

    /// Returns the alignments as an enumeration: JSON Schema cannot express
    /// powers of two.
    pub fn alignments() -> Object {
        let powers = (0..=SIZE_MAX.trailing_zeros()).map(|order| 1_u64 << order);
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .description(Some(
                "The alignment: a power of two, at most 2^52; 0 and 1 mean any.",
            ))
            .enum_values(Some([0].into_iter().chain(powers)))
            .build()
    }

    impl utoipa::PartialSchema for CreateBody {
        fn schema() -> RefOr<Schema> {
            let spec = || Ref::from_schema_name("InstanceSpec");
            let shown = ObjectBuilder::new()
                .description(Some(
                    "What `GET` of an instance returned: only its `spec` is used.",
                ))
                .property("spec", spec())
                .required("spec");
            AnyOfBuilder::new()
                .description(Some(
                    "An instance to be created: its specification, or what `GET` of an instance \
                     returned.",
                ))
                .item(spec())
                .item(shown)
                .into()
        }
    }

    impl utoipa::ToSchema for CreateBody {
        fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
            use utoipa::PartialSchema;
            schemas.push(("InstanceSpec".to_owned(), InstanceSpec::schema()));
            InstanceSpec::schemas(schemas);
        }
    }
}

#[cfg(feature = "schema")]
use schema::alignments;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_can_be_sent() {
        let read = |json: &str| serde_json::from_str::<CreateBody>(json);
        let spec: InstanceSpec = "name=web,memory=8M,on-panic=restart".parse().unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(read(&json).unwrap().0, spec);
        let shown = format!(r#"{{"id": 3, "kernel": {{"size": 1}}, "spec": {json}}}"#);
        assert_eq!(read(&shown).unwrap().0, spec);
        for bad in [
            r#"{"nam": "a"}"#,
            r#"{"spec": {"nam": "a"}}"#,
            "[]",
            "3",
            r#"{"spec": 1}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

//! Generates options from the keys of a spec: `create` and `load` have one for
//! each key, and the help of `--guest` lists them.

use std::fmt::Write as _;
use std::marker::PhantomData;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use mkvmm_api::reader::{from_pairs, is_flag, keys, words};
use mkvmm_api::{InstanceSpec, SpecError};
use serde::de::DeserializeOwned;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Object, RefOr};

/// The key that is a positional argument and not an option.
const NAME: &str = "name";

/// The options that were given, as pairs of key and value.
#[derive(Debug, Clone)]
pub struct SpecArgs<T> {
    pairs: Vec<(&'static str, String)>,
    spec: PhantomData<T>,
}

impl<T: DeserializeOwned> SpecArgs<T> {
    /// Builds the spec from the options, with `name` if the spec has a name.
    ///
    /// # Errors
    /// Returns a [`SpecError`] for the first invalid value.
    pub fn spec(&self, name: Option<&str>) -> Result<T, SpecError> {
        let name = name.map(|name| (NAME, name.to_owned()));
        from_pairs(name.into_iter().chain(self.pairs.iter().cloned()))
    }
}

/// Returns the keys that are options.
fn options<T: DeserializeOwned>() -> impl Iterator<Item = &'static str> {
    let keys = keys::<T>().iter().copied();
    keys.filter(|key| *key != NAME)
}

impl<T: DeserializeOwned> FromArgMatches for SpecArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values = |key| {
            let values = matches.get_many::<String>(key).into_iter().flatten();
            values.map(move |value| (key, value.clone()))
        };
        Ok(Self {
            pairs: options::<T>().flat_map(values).collect(),
            spec: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: DeserializeOwned + ToSchema> Args for SpecArgs<T> {
    fn augment_args(command: Command) -> Command {
        let schema = properties::<T>();
        options::<T>().fold(command, |command, key| {
            command.arg(option::<T>(&schema, key))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn option<T: DeserializeOwned>(schema: &Object, key: &'static str) -> Arg {
    let arg = Arg::new(key)
        .long(key)
        .help(description(schema, key))
        .required(schema.required.iter().any(|required| required == key))
        // The reader checks which keys may be repeated.
        .action(ArgAction::Append);
    if is_flag::<T>(key) {
        return arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(PossibleValuesParser::new(["true", "false"]));
    }
    match words::<T>(key) {
        [] => arg.value_name(value_name(schema.properties.get(key))),
        words => arg.value_parser(PossibleValuesParser::new(words)),
    }
}

fn properties<T: ToSchema>() -> Object {
    match T::schema() {
        RefOr::T(Schema::Object(object)) => object,
        _ => ObjectBuilder::new().build(),
    }
}

/// Returns the comment of a field in the form of help text.
fn description(schema: &Object, key: &str) -> String {
    let text = schema.properties.get(key).and_then(described);
    text.unwrap_or_default().trim_end_matches('.').to_owned()
}

fn described(schema: &RefOr<Schema>) -> Option<&str> {
    match schema {
        RefOr::Ref(reference) => Some(reference.description.as_str()),
        RefOr::T(Schema::Object(object)) => object.description.as_deref(),
        // The schema of an optional field describes the possible types.
        RefOr::T(Schema::OneOf(several)) => {
            let whole = several.description.as_deref();
            whole.or_else(|| several.items.iter().rev().find_map(described))
        }
        RefOr::T(_) => None,
    }
}

/// Returns the placeholder of a value: the last word of its type's name.
fn value_name(schema: Option<&RefOr<Schema>>) -> &'static str {
    let reference = |schema: &RefOr<Schema>| match schema {
        RefOr::Ref(reference) => Some(reference.ref_location.clone()),
        RefOr::T(_) => None,
    };
    let name = match schema {
        Some(RefOr::T(Schema::OneOf(several))) => several.items.iter().find_map(reference),
        Some(schema) => reference(schema),
        None => None,
    };
    let is_integer = matches!(schema, Some(RefOr::T(Schema::Object(object)))
        if has_type(&object.schema_type, &Type::Integer));
    match name {
        Some(name) if name.ends_with("Size") => "SIZE",
        Some(name) if name.ends_with("Path") => "PATH",
        Some(name) if name.ends_with("List") => "LIST",
        _ if is_integer => "N",
        _ => "TEXT",
    }
}

fn has_type(schema: &SchemaType, wanted: &Type) -> bool {
    match schema {
        SchemaType::Type(one) => one == wanted,
        SchemaType::Array(several) => several.contains(wanted),
        SchemaType::AnyValue => false,
    }
}

/// Returns the description of a key of instances.
pub fn key_help(key: &str) -> String {
    description(&properties::<InstanceSpec>(), key)
}

/// Returns the help of `--guest`, with all keys.
pub fn guest_help() -> String {
    let schema = properties::<InstanceSpec>();
    let mut text = "A guest; repeatable. A comma inside a value is written `,,`. Keys:".to_owned();
    for key in keys::<InstanceSpec>() {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {key:<14} {}", description(&schema, key));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_api::ImagesSpec;

    fn command<T: DeserializeOwned + ToSchema>() -> Command {
        SpecArgs::<T>::augment_args(Command::new("create"))
    }

    #[test]
    fn every_key_is_an_option_with_help() {
        let command = command::<InstanceSpec>();
        for key in options::<InstanceSpec>() {
            let arg = command.get_arguments().find(|arg| arg.get_id() == key);
            let help = arg.and_then(Arg::get_help).map(ToString::to_string);
            assert!(help.is_some_and(|help| help.len() > 10), "{key}");
            assert!(guest_help().contains(&format!("\n  {key}")), "{key}");
        }
        let value = |key| {
            let arg = command.get_arguments().find(|arg| arg.get_id() == key)?;
            Some(arg.get_value_names()?.first()?.to_string())
        };
        for (key, name) in [
            ("memory", "SIZE"),
            ("cpus", "N"),
            ("order", "N"),
            ("kernel", "PATH"),
            ("initrd", "PATH"),
            ("console-log", "PATH"),
            ("cpus-affinity", "LIST"),
            ("cmdline", "TEXT"),
        ] {
            assert_eq!(value(key).as_deref(), Some(name), "{key}");
        }
    }

    #[test]
    fn options_and_pairs_make_the_same_spec() {
        let given = [
            "create",
            "--memory",
            "8M",
            "--cpus=2",
            "--initrd",
            "a",
            "--initrd",
            "b",
            "--kernel",
            "k",
            "--on-panic",
            "restart",
            "--rng",
            "--cmdline",
            "x,y",
        ];
        let matches = command::<InstanceSpec>().get_matches_from(given);
        let args = SpecArgs::<InstanceSpec>::from_arg_matches(&matches).unwrap();
        let pairs = "name=web,memory=8M,cpus=2,initrd=a,initrd=b,kernel=k,on-panic=restart,\
                     rng,cmdline=x,,y";
        assert_eq!(args.spec(Some("web")).unwrap(), pairs.parse().unwrap());
        let error = command::<ImagesSpec>().try_get_matches_from(["load"]);
        assert!(error.unwrap_err().to_string().contains("--kernel"));
        let wrong = ["create", "--on-panic", "cry"];
        command::<InstanceSpec>()
            .try_get_matches_from(wrong)
            .unwrap_err();
    }
}

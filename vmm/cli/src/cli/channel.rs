//! `mkvmm channel`: memory and doorbells that instances share.

use clap::Subcommand;
use mkvmm_api::channel::{Channel, ChannelBody, MemberBody, MemberSpec};
use mkvmm_base::{Class, Diagnose, NameError};

use crate::cli::client::ClientArgs;
use crate::cli::exchange::{ChangeArgs, change, get};
use crate::cli::options::OptionError;
use crate::cli::tables;
use crate::error::{CliError, ExitStatus};
use mkvmm_client::{Call, escape};

/// A name of a channel or of a member is invalid.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ChannelNameError(NameError);

impl Diagnose for ChannelNameError {
    fn class(&self) -> Class {
        Class::Name
    }
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The name of the channel
    name: String,
    /// The number of bytes, for example 2M
    #[arg(long, value_name = "BYTES")]
    size: String,
    /// The members: names of instances, which need not exist yet; a name is
    /// followed by `:ro` if that instance can only read
    #[arg(
        long,
        value_name = "NAME,NAME…",
        value_delimiter = ',',
        required = true
    )]
    between: Vec<String>,
    /// The number of doorbells that each member has
    #[arg(long, value_name = "N", default_value_t = 1)]
    doorbells: u8,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct MemberArgs {
    /// The name of the channel
    name: String,
    /// The name of the member
    member: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, Subcommand)]
pub enum ChannelCommand {
    /// Create a channel; members that run have it at once, others at their boots
    Create(CreateArgs),
    /// List the channels
    List(ClientArgs),
    /// Print a channel with the states of its members
    Show {
        /// The name of the channel
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give a channel to a member: at once if it runs, and at its boots from now on
    Join(MemberArgs),
    /// Take a channel away from a member: at once if it runs, and until it joins again
    Leave(MemberArgs),
    /// Delete a channel that no guest has, and free its memory
    Delete {
        /// The name of the channel
        name: String,
        /// Take it away from guests that have it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// Carries out a command about channels.
///
/// # Errors
/// Returns a [`CliError`].
pub fn run(command: &ChannelCommand) -> Result<ExitStatus, CliError> {
    let path = |name: &str| format!("/v1/channels/{}", escape(name));
    match command {
        ChannelCommand::Create(args) => create(args),
        ChannelCommand::List(client) => get(client, "/v1/channels", |all: &Vec<Channel>| {
            tables::channels(all)
        }),
        ChannelCommand::Show { name, client } => get(client, &path(name), |one: &Channel| {
            tables::channels(std::slice::from_ref(one))
        }),
        ChannelCommand::Join(args) => move_member(args, "join"),
        ChannelCommand::Leave(args) => move_member(args, "leave"),
        ChannelCommand::Delete {
            name,
            force,
            change: args,
        } => {
            let dry_run = args.is_dry_run();
            let path = format!("{}?dry_run={dry_run}&force={force}", path(name));
            change(args, Call::new("DELETE", path), |one: &Channel| {
                format!("{}: deleted\n", one.name)
            })
        }
    }
}

fn move_member(args: &MemberArgs, verb: &str) -> Result<ExitStatus, CliError> {
    let MemberArgs {
        name,
        member,
        change: options,
    } = args;
    let body = MemberBody {
        member: member.parse().map_err(ChannelNameError)?,
    };
    let path = format!("/v1/channels/{}/{verb}{}", escape(name), options.query());
    let call = Call::new("POST", path).with(&body)?;
    change(options, call, |one: &Channel| {
        tables::channels(std::slice::from_ref(one))
    })
}

fn create(args: &CreateArgs) -> Result<ExitStatus, CliError> {
    let members = args.between.iter().map(|text| text.parse::<MemberSpec>());
    let members = members
        .collect::<Result<_, _>>()
        .map_err(ChannelNameError)?;
    let body = ChannelBody {
        name: args.name.parse().map_err(ChannelNameError)?,
        size: args.size.parse().map_err(OptionError::of("size"))?,
        between: members,
        doorbells: args.doorbells,
    };
    let path = format!("/v1/channels{}", args.change.query());
    let call = Call::new("POST", path).with(&body)?;
    change(&args.change, call, |one: &Channel| {
        format!(
            "{}: {:#x} {} bytes\n",
            one.name, one.range.start, one.range.size
        )
    })
}

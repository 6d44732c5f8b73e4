//! Any text as a fleet file, and as the value of `--guest`. What is read says
//! what it says also when it is written as JSON and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mkvmm_api::InstanceSpec;
use mkvmm_api::channel::ChannelBody;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Fleet {
    #[serde(default)]
    channel: Vec<ChannelBody>,
    instance: Vec<InstanceSpec>,
}

fn check_channel(channel: &ChannelBody) {
    let json = serde_json::to_string(channel).expect("a channel is JSON");
    let again: ChannelBody = serde_json::from_str(&json).expect("what is written can be read");
    assert_eq!(again, *channel, "{json}");
}

fn check(spec: &InstanceSpec) {
    let json = serde_json::to_string(spec).expect("a spec is JSON");
    let again: InstanceSpec = serde_json::from_str(&json).expect("what GET shows can be sent");
    assert_eq!(again, *spec, "{json}");
}

fuzz_target!(|text: &str| {
    if let Ok(fleet) = toml::from_str::<Fleet>(text) {
        fleet.channel.iter().for_each(check_channel);
        fleet.instance.iter().for_each(check);
    }
    if let Ok(spec) = text.parse::<InstanceSpec>() {
        check(&spec);
    }
    if let Ok(spec) = serde_json::from_str::<InstanceSpec>(text) {
        check(&spec);
    }
});

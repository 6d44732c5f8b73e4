//! What clients may do that are neither the user of this VMM nor root: the members of
//! the group of `serve --socket-group`.
//!
//! They use the pool as tenants: they create instances and have all rights to their
//! own. Whose an instance is, the registry checks whenever it is looked up. Here it is
//! decided which routes there are for them, and what instances of theirs may name: no
//! file is opened for them that they could not have, since it would be opened with the
//! rights of this process.

use std::path::Path;

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mkvmm_api::{ImagesSpec, InstanceSpec, MINE};

use crate::control::client::answer_for;
use crate::control::connections::Peer;
use crate::control::error::ControlError;

/// What is read by anybody, below `/v1/`: it says nothing about others.
const READABLE: [&str; 6] = [
    "version",
    "openapi.json",
    "pool",
    "capacity",
    "health",
    // Those of the client's own instances.
    "events",
];

/// Answers a request with the rights of its client.
pub async fn with_rights(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let user = peer.unwrap_or_default().user;
    if user.is_some() && !is_for_tenants(request.method(), request.uri().path()) {
        let what = "do this";
        return ControlError::Forbidden { what }.into_response();
    }
    answer_for(user, next.run(request)).await
}

fn is_for_tenants(method: &Method, path: &str) -> bool {
    let Some(below) = path.strip_prefix("/v1/") else {
        return false;
    };
    let is_read = [Method::GET, Method::HEAD].contains(method);
    (is_read && READABLE.contains(&below)) || below.split('/').next() == Some("instances")
}

/// Checks that an instance of a tenant names nothing that only the user of this VMM
/// may use.
///
/// # Errors
/// Returns [`ControlError::Forbidden`].
pub fn check_spec(spec: &InstanceSpec, has_image_dirs: bool) -> Result<(), ControlError> {
    let forbidden = |what| Err(ControlError::Forbidden { what });
    if spec.console_log.is_some() {
        return forbidden("have console logs written");
    }
    if !spec.disk.is_empty() {
        return forbidden("give disks to instances");
    }
    if !spec.net.is_empty() {
        return forbidden("give network devices to instances");
    }
    check_cgroup(spec.cgroup.as_deref())?;
    match spec.images()? {
        Some(images) => check_images(&images, has_image_dirs),
        None => Ok(()),
    }
}

/// Checks that the images of a tenant may be opened: below directories that are for
/// clients.
///
/// # Errors
/// Returns [`ControlError::Forbidden`].
pub fn check_images(images: &ImagesSpec, has_image_dirs: bool) -> Result<(), ControlError> {
    if !has_image_dirs && images.sources().next().is_some() {
        let what = "name files without serve's --image-dir";
        return Err(ControlError::Forbidden { what });
    }
    Ok(())
}

/// Checks that a tenant names no cgroup but its own.
///
/// # Errors
/// Returns [`ControlError::Forbidden`].
pub fn check_cgroup(cgroup: Option<&Path>) -> Result<(), ControlError> {
    match cgroup {
        Some(path) if path != Path::new(MINE) => {
            let what = "name cgroups";
            Err(ControlError::Forbidden { what })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_have_the_routes_of_instances_and_what_is_about_nobody() {
        for (method, path, is_allowed) in [
            (Method::GET, "/v1/capacity", true),
            (Method::GET, "/v1/pool", true),
            (Method::GET, "/v1/pool/map", false),
            (Method::GET, "/v1/iomem", false),
            (Method::GET, "/v1/metrics", false),
            (Method::POST, "/v1/pool/allocations", false),
            (Method::POST, "/v1/upgrade", false),
            (Method::POST, "/v1/apply", false),
            (Method::POST, "/v1/plan", false),
            (Method::POST, "/v1/channels", false),
            (Method::POST, "/v1/instances", true),
            (Method::POST, "/v1/instances/a/kill", true),
            (Method::DELETE, "/v1/instances/a", true),
            (Method::GET, "/v1/instancesx", false),
            (Method::GET, "/v2/instances", false),
            (Method::POST, "/v1/events", false),
        ] {
            assert_eq!(is_for_tenants(&method, path), is_allowed, "{method} {path}");
        }
    }

    #[test]
    fn instances_of_tenants_name_nothing_of_the_hosts() {
        for (text, is_allowed) in [
            ("name=a,kernel=probe,memory=8M,cpus=2,rng", true),
            ("name=a,cgroup=mine,cpu-limit=50,label=job=7", true),
            ("name=a,cgroup=/other", false),
            ("name=a,kernel=/etc/shadow", false),
            ("name=a,kernel=probe,initrd=/etc/shadow", false),
            ("name=a,console-log=/tmp/log", false),
            ("name=a,disk=/dev/sda", false),
            ("name=a,net=passt", false),
        ] {
            let spec: InstanceSpec = text.parse().unwrap();
            assert_eq!(check_spec(&spec, false).is_ok(), is_allowed, "{text}");
        }
        let spec: InstanceSpec = "name=a,kernel=/images/k".parse().unwrap();
        check_spec(&spec, true).unwrap();
    }
}

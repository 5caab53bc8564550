//! House rules that the manifests and sources can be asked about: who may depend on whom, and what the catalog is free
//! of.

use std::collections::BTreeMap;
use std::path::Path;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

#[test]
fn crates_depend_only_downwards() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("event-watcher", &[][..]),
        ("dns", &["event-watcher"]),
        ("l4-vip", &["event-watcher"]),
        ("lb-http", &["event-watcher", "l4-vip"]),
        ("cli", &["event-watcher", "dns", "l4-vip", "lb-http"]),
    ]);
    let names: Vec<&str> = allowed.keys().copied().chain(["tests"]).collect();
    for (package, may) in &allowed {
        let manifest = std::fs::read_to_string(workspace().join(package).join("Cargo.toml")).unwrap();
        for line in manifest.lines() {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if names.contains(&name) && !line.starts_with("name") {
                assert!(may.contains(&name), "{package} must not depend on {name}");
            }
        }
    }
}

#[test]
fn the_catalog_does_no_io() {
    let forbidden =
        ["tokio", "reqwest", "std::fs", "std::process", "std::time", "TcpStream", "UdpSocket", "std::env"];
    let mut paths = vec![workspace().join("event-watcher/src/catalog")];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for word in forbidden {
            assert!(!text.contains(word), "{} must not use {word}", path.display());
        }
    }
}

#[test]
fn data_planes_never_talk_to_the_scheduler() {
    for package in ["dns", "l4-vip", "lb-http"] {
        let manifest = std::fs::read_to_string(workspace().join(package).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("reqwest"), "{package} must not have a client for the scheduler");
    }
}

#[test]
fn every_source_file_says_what_it_holds() {
    let mut folders = vec![workspace().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
            }
        }
    }
}

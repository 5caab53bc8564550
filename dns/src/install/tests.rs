//! Installing and taking back, in a root directory of its own.

use super::*;

const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
const BEFORE: &str =
    "# theirs\nsearch example\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n";

fn host() -> (tempfile::TempDir, Host, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let host = Host::new(root.path());
    let path = root.path().join(RESOLV_CONF);
    (root, host, path)
}

fn apply(host: &Host) -> Outcome {
    let plan = host.plan(host.style(), &[OWN], &["mesos".into(), "thisdcos.directory".into()]).unwrap();
    host.apply(&plan).unwrap()
}

#[test]
fn resolv_conf_is_taken_over_and_given_back() {
    let (_root, host, path) = host();
    fs::write(&path, BEFORE).unwrap();
    assert_eq!(apply(&host), Outcome::Changed);
    let text = fs::read_to_string(&path).unwrap();
    let servers: Vec<&str> = text.lines().filter(|l| l.starts_with("nameserver")).collect();
    assert_eq!(servers, ["nameserver 198.51.100.1", "nameserver 10.0.0.1", "nameserver 10.0.0.2"]);
    assert!(text.contains("\nsearch example\n"));
    assert_eq!(apply(&host), Outcome::Unchanged);
    assert_eq!(host.remove().unwrap(), Outcome::Changed);
    assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
    assert_eq!(host.remove().unwrap(), Outcome::Unchanged);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn links_missing_files_and_the_work_of_others_are_kept() {
    let (_root, host, path) = host();
    let target = path.with_file_name("real");
    fs::write(&target, BEFORE).unwrap();
    std::os::unix::fs::symlink("real", &path).unwrap();
    apply(&host);
    assert!(!path.is_symlink() && fs::read_to_string(&target).unwrap() == BEFORE);
    host.remove().unwrap();
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("real"));

    fs::remove_file(&path).unwrap();
    apply(&host);
    host.remove().unwrap();
    assert!(!path.exists(), "there was none");

    fs::write(&path, BEFORE).unwrap();
    apply(&host);
    fs::write(&path, "nameserver 10.9.9.9\n").unwrap();
    assert_eq!(host.remove().unwrap(), Outcome::Superseded);
    assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.9.9.9\n");
    apply(&host);
    host.remove().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.9.9.9\n");
}

fn host_with_resolved() -> (tempfile::TempDir, Host, PathBuf) {
    let (root, host, path) = host();
    fs::create_dir_all(root.path().join("run/systemd/resolve")).unwrap();
    fs::write(root.path().join("run/systemd/resolve/stub-resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
    (root, host, path)
}

#[test]
fn resolved_gets_a_drop_in_for_the_cluster_alone() {
    let (root, host, path) = host_with_resolved();
    assert_eq!(apply(&host), Outcome::RestartResolved);
    let text = fs::read_to_string(root.path().join(DROP_IN)).unwrap();
    assert!(text.ends_with("[Resolve]\nDNS=198.51.100.1\nDomains=~mesos ~thisdcos.directory\n"), "{text}");
    assert_eq!(apply(&host), Outcome::RestartResolved, "it was not told yet");
    host.told().unwrap();
    assert_eq!(apply(&host), Outcome::Unchanged);
    assert!(path.is_symlink());
    for _ in 0..2 {
        assert_eq!(host.remove().unwrap(), Outcome::RestartResolved);
        assert!(!root.path().join(DROP_IN).exists());
    }
    host.told().unwrap();
    assert_eq!(host.remove().unwrap(), Outcome::Unchanged);
    assert!(!root.path().join("run/systemd/resolved.conf.d").exists(), "nothing is left");
}

#[test]
fn resolved_is_left_alone_where_it_would_ask_others_or_nobody_asks_it() {
    let (root, host, path) = host_with_resolved();
    let config = root.path().join("etc/systemd/resolved.conf.d");
    fs::create_dir_all(&config).unwrap();
    for (text, expect) in [
        ("[Resolve]\n#DNS=10.0.0.1\nFallbackDNS=10.0.0.2\nDNSSEC=no\n", Style::SystemdResolved),
        ("[Resolve]\nDNS = 10.0.0.1\n", Style::ResolvConf),
        ("[Resolve]\nDNS=10.0.0.1\nDNS=\n", Style::SystemdResolved),
    ] {
        fs::write(config.join("10-own.conf"), text).unwrap();
        assert_eq!(host.style(), expect, "{text}");
        let planned = host.plan(Style::SystemdResolved, &[OWN], &[]);
        let is_refused = matches!(planned, Err(InstallError::GlobalServers(_)));
        assert_eq!(is_refused, expect == Style::ResolvConf, "{text}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(host.style(), Style::SystemdResolved, "nobody else could be asked");
    fs::write(&path, BEFORE).unwrap();
    assert_eq!(host.style(), Style::ResolvConf);
    fs::write(root.path().join("etc/nsswitch.conf"), "hosts: files resolve [!UNAVAIL=return] dns\n").unwrap();
    assert_eq!(host.style(), Style::SystemdResolved);
}

#[test]
fn what_was_edited_since_is_neither_overwritten_nor_thrown_away() {
    let (_root, host, path) = host();
    fs::write(&path, BEFORE).unwrap();
    apply(&host);
    let edited = fs::read_to_string(&path).unwrap() + "nameserver 10.9.9.9\n";
    fs::write(&path, &edited).unwrap();
    assert!(matches!(host.remove(), Err(InstallError::Edited(_))));
    assert!(matches!(host.plan(Style::ResolvConf, &[OWN], &[]), Err(InstallError::Edited(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), edited);
    fs::remove_file(&path).unwrap();
    assert_eq!(host.remove().unwrap(), Outcome::Changed);
    assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE);
}

/// Whatever step a process ended at, both who installs and who removes then end as if it had not begun.
#[test]
fn every_interrupted_step_is_repaired() {
    type Step = fn(&Host, &Path);
    let steps: [(&str, Step); 5] = [
        ("not begun", |_, _| {}),
        ("kept", |host, path| keep(path, &host.path(BACKUP)).unwrap()),
        ("partly written", |host, path| {
            keep(path, &host.path(BACKUP)).unwrap();
            fs::write(files::partial(path), MARK).unwrap();
        }),
        ("emptied in place", |host, path| {
            fs::copy(path, host.path(BACKUP)).unwrap();
            fs::write(path, "").unwrap();
        }),
        ("installed", |host, _| {
            apply(host);
        }),
    ];
    for (step, interrupted) in steps {
        for installs_first in [false, true] {
            let (_root, host, path) = host();
            fs::write(&path, BEFORE).unwrap();
            interrupted(&host, &path);
            if installs_first {
                apply(&host);
                assert!(fs::read_to_string(&path).unwrap().contains("nameserver 198.51.100.1\n"), "{step}");
            }
            host.remove().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), BEFORE, "{step}");
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "{step}: something is left");
        }
    }
}

#[test]
fn the_file_itself_comes_back_and_everybody_may_read_what_stands_in_for_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (_root, host, path) = host();
    fs::write(&path, BEFORE).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let identity = |path: &Path| {
        let file = fs::metadata(path).unwrap();
        (file.ino(), file.mode(), file.uid(), file.gid(), file.mtime_nsec())
    };
    let before = identity(&path);
    apply(&host);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    host.remove().unwrap();
    assert_eq!(identity(&path), before);
}

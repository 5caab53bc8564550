//! The files of certificates and authorities: read at the start, and again when one of them changed.
//!
//! A file that cannot be read or used keeps what was read of it before; the caller shows the error. Changes are seen
//! by looking at sizes and times every now and then: certificate managers replace files in ways (links to links,
//! renames of directories) that notifications miss.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::certificate::{Certificate, CertificateError, files_of};
use super::servers::Verify;
use super::table::{Contents, Policies};

/// What is the same as long as a file was not touched.
type Stamp = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Certificates for every host; the first is the default.
    pub(crate) shared: Vec<Certificate>,
    pub(crate) contents: Contents,
    /// What is wrong, by path.
    pub(crate) errors: BTreeMap<PathBuf, CertificateError>,
    paths: Vec<PathBuf>,
    inline: Vec<Certificate>,
    stamps: BTreeMap<PathBuf, Stamp>,
}

impl Files {
    /// `paths` are files and directories, `inline` are PEM texts; together they are the shared certificates. With
    /// none of both, one is made.
    pub(crate) fn open(paths: Vec<PathBuf>, inline: &[String]) -> Result<Self, CertificateError> {
        let mut certificates = Vec::new();
        for (index, pem) in inline.iter().enumerate() {
            certificates
                .push(Certificate::from_pem(pem.as_bytes(), &format!("HAPROXY_SSL_CERT (text {index})"))?);
        }
        if paths.is_empty() && inline.is_empty() {
            certificates.push(Certificate::self_signed()?);
        }
        let mut files = Self { paths, inline: certificates, ..Self::default() };
        files.refresh(&Policies::default());
        files.share();
        // At the start an error ends the program: nothing was promised yet.
        match std::mem::take(&mut files.errors).into_values().next() {
            Some(error) => Err(error),
            None => Ok(files),
        }
    }

    /// Reads what is new or was touched. Whether something is different now.
    pub(crate) fn refresh(&mut self, policies: &Policies) -> bool {
        let all = || policies.of_hosts.values().chain(policies.of_ports.values());
        let mut certificates: Vec<PathBuf> = all().flat_map(|policy| policy.certificates.clone()).collect();
        certificates.extend(self.paths.iter().cloned());
        let of_clients = all().filter_map(|policy| Some(policy.client_auth.as_ref()?.ca.clone()));
        let of_servers = policies.to_servers.iter().filter_map(|verify| match verify {
            Verify::Authorities(path) => Some(path.clone()),
            Verify::System | Verify::None => None,
        });
        let authorities: Vec<PathBuf> = of_clients.chain(of_servers).collect();
        let known = |path: &PathBuf| certificates.contains(path) || authorities.contains(path);
        let n_before = self.stamps.len();
        self.stamps.retain(|path, _| known(path));
        self.errors.retain(|path, _| known(path));
        self.contents.certificates.retain(|path, _| certificates.contains(path));
        self.contents.authorities.retain(|path, _| authorities.contains(path));
        let mut is_different = self.stamps.len() != n_before;
        for path in &certificates {
            if self.was_touched(path) {
                is_different = true;
                let read = Certificate::from_path(path);
                keep(read, path, &mut self.contents.certificates, &mut self.errors);
            }
        }
        for path in &authorities {
            if self.was_touched(path) {
                is_different = true;
                keep(read_authorities(path), path, &mut self.contents.authorities, &mut self.errors);
            }
        }
        if is_different {
            self.share();
        }
        is_different
    }

    fn share(&mut self) {
        let of_paths = self.paths.iter().filter_map(|path| self.contents.certificates.get(path)).flatten();
        self.shared = of_paths.chain(&self.inline).cloned().collect();
    }

    /// Since it was asked last.
    fn was_touched(&mut self, path: &Path) -> bool {
        let now = stamp(path);
        let is_new = self.stamps.get(path) != Some(&now);
        if is_new {
            self.stamps.insert(path.to_owned(), now);
        }
        is_new
    }
}

/// What cannot be read leaves what was.
fn keep<T>(
    read: Result<T, CertificateError>,
    path: &Path,
    contents: &mut BTreeMap<PathBuf, T>,
    errors: &mut BTreeMap<PathBuf, CertificateError>,
) {
    match read {
        Ok(read) => {
            errors.remove(path);
            contents.insert(path.to_owned(), read);
        }
        Err(error) => drop(errors.insert(path.to_owned(), error)),
    }
}

fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem =
        std::fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })?;
    let origin = || path.display().to_string();
    let read: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|source| CertificateError::Pem { origin: origin(), source })?;
    if read.is_empty() {
        return Err(CertificateError::NoCertificate { origin: origin() });
    }
    Ok(read)
}

fn stamp(path: &Path) -> Stamp {
    let of_file = |file: PathBuf| {
        let metadata = file.metadata().ok();
        let stamp = metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        (file, stamp)
    };
    let mut files = files_of(path).unwrap_or_else(|_| vec![path.to_owned()]);
    let beside: Vec<PathBuf> = files.iter().map(|file| format!("{}.key", file.display()).into()).collect();
    files.extend(beside);
    files.into_iter().map(of_file).collect()
}

#[cfg(test)]
mod tests {
    use super::super::certificate::tests::pem;
    use super::super::policy::HostPolicy;
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_keeps_what_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.pem");
        std::fs::write(&path, pem(&["a.test"])).unwrap();
        let mut files = Files::open(vec![path.clone()], &[]).unwrap();
        let policies = Policies::default();
        assert!(!files.refresh(&policies), "nothing was touched");
        std::fs::write(&path, pem(&["longer-name.a.test"])).unwrap();
        assert!(files.refresh(&policies));
        assert_eq!(&*files.shared[0].names[0], "longer-name.a.test");
        std::fs::write(&path, "nothing").unwrap();
        assert!(files.refresh(&policies));
        assert_eq!(&*files.shared[0].names[0], "longer-name.a.test");
        assert!(files.errors.contains_key(&path));
        std::fs::write(&path, pem(&["a.test"])).unwrap();
        assert!(files.refresh(&policies));
        assert!(files.errors.is_empty());
    }

    #[test]
    fn files_of_policies_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.pem");
        std::fs::write(&path, pem(&["a.test"])).unwrap();
        let mut files = Files::open(Vec::new(), &[pem(&["inline.test"])]).unwrap();
        let policy = HostPolicy { certificates: vec![path.clone()], ..HostPolicy::default() };
        let policies = Policies { of_hosts: [("a.test".into(), policy)].into(), ..Policies::default() };
        assert!(files.refresh(&policies));
        assert!(files.contents.certificates.contains_key(&path));
        assert!(files.refresh(&Policies::default()));
        assert!(files.contents.certificates.is_empty());
        assert_eq!(files.shared.len(), 1, "the one that was given as text");
    }

    #[test]
    fn with_nothing_given_one_is_made() {
        assert_eq!(Files::open(Vec::new(), &[]).unwrap().shared.len(), 1);
        assert_eq!(Files::open(Vec::new(), &[pem(&["a.test"])]).unwrap().shared.len(), 1);
    }

    #[test]
    fn a_missing_file_ends_the_start() {
        let error = Files::open(vec!["/nowhere/a.pem".into()], &[]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/a.pem");
    }
}

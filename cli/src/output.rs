//! Pictures on disk.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::error::CliError;

/// The file of picture `index` of `count`: `path` itself for a single one, else numbered.
pub fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let width = (count - 1).to_string().len();
    path.with_file_name(format!("{stem}-{index:0width$}.{extension}"))
}

/// Writes the file whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let folder = folder_of(path);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(CliError::file(path))?;
    file.write_all(bytes).map_err(CliError::file(path))?;
    #[cfg(unix)]
    {
        use std::{fs::Permissions, os::unix::fs::PermissionsExt};
        let readable = Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(readable)
            .map_err(CliError::file(path))?;
    }
    file.persist(path)
        .map_err(|error| CliError::file(path)(error.error))?;
    Ok(())
}

/// Refuses, before any work, a path that cannot be written later.
pub fn check(path: &Path) -> Result<(), CliError> {
    let refuse = |reason| Err(CliError::Argument(format!("--output: {reason}")));
    let name = path.display();
    if path
        .extension()
        .is_none_or(|extension| !extension.eq_ignore_ascii_case("png"))
    {
        return refuse(format!("must end in .png, got {name}"));
    }
    if path.is_dir() {
        return refuse(format!("must be a file, {name} is a folder"));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return refuse(format!("{} is no folder", folder.display()));
    }
    match tempfile::NamedTempFile::new_in(folder) {
        Ok(_) => Ok(()),
        Err(error) => refuse(format!("{} cannot be written: {error}", folder.display())),
    }
}

fn folder_of(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pictures_are_numbered_in_order() {
        let path = Path::new("a/b.png");
        assert_eq!(numbered(path, 0, 1), path);
        assert_eq!(numbered(path, 3, 10), Path::new("a/b-3.png"));
        assert_eq!(numbered(path, 3, 11), Path::new("a/b-03.png"));
    }

    #[test]
    fn refuses_paths_that_cannot_be_written() {
        assert!(check(Path::new("out.png")).is_ok());
        assert!(check(Path::new("out.jpg")).is_err());
        assert!(check(Path::new("/no/such/folder/out.png")).is_err());
        let folder = tempfile::Builder::new().suffix(".png").tempdir();
        assert!(check(folder.expect("folder").path()).is_err());
        #[cfg(target_os = "linux")]
        assert!(check(Path::new("/proc/out.png")).is_err(), "nobody can");
    }

    #[test]
    fn writes_whole_files() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x.png");
        write(&path, b"one").expect("written");
        write(&path, b"two").expect("replaced");
        assert_eq!(std::fs::read(&path).expect("read"), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 1);
    }
}

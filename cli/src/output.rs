//! Pictures on disk and in the terminal.

use std::{
    io::{IsTerminal, Write},
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
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
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
    if path
        .extension()
        .is_none_or(|extension| !extension.eq_ignore_ascii_case("png"))
    {
        let name = path.display();
        return Err(CliError::Argument(format!(
            "--output: must end in .png, got {name}"
        )));
    }
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            let name = folder.display();
            Err(CliError::Argument(format!("--output: {name} is no folder")))
        }
        _ => Ok(()),
    }
}

/// Shows a PNG where standard output is a terminal: with its graphics protocol, or as half blocks.
pub fn show(png: &[u8]) {
    if !std::io::stdout().is_terminal() {
        return;
    }
    if let Ok(picture) = image::load_from_memory(png) {
        let width = picture.width().min(64);
        let config = viuer::Config {
            absolute_offset: false,
            width: Some(width),
            ..viuer::Config::default()
        };
        let _ = viuer::print(&picture, &config);
    }
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

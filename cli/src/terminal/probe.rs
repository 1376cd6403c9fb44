//! Asks the terminal what it can show.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use rustix::{
    process::getpgrp,
    termios::{
        LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
    },
};

/// Longest wait for the answer. Some terminals, and what only looks like one, never answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest answer that is read, in bytes.
const LONGEST: usize = 4096;
/// A picture of one pixel which kitty's protocol checks but does not show, and the primary device
/// attributes, which terminals of every kind tell.
const QUESTIONS: &[u8] = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c";
/// Removes what a terminal may have printed of a question that it does not understand.
const CLEAN: &[u8] = b"\r\x1b[2K";
/// The device attribute of sixel.
const SIXEL: &str = "4";

/// Protocols that a terminal says it understands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// kitty's graphics protocol.
    pub kitty: bool,
    /// Sixel.
    pub sixel: bool,
}

/// Asks the terminal of this process; none where there is none or no answer.
pub fn ask() -> Abilities {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let answer = terminal.and_then(|terminal| converse(&terminal));
    answer
        .ok()
        .and_then(|answer| understood(&answer))
        .unwrap_or_default()
}

fn converse(mut terminal: &File) -> io::Result<Vec<u8>> {
    // A process in the background would be stopped for it.
    if tcgetpgrp(terminal)? != getpgrp() {
        return Err(ErrorKind::WouldBlock.into());
    }
    let _quiet = Quiet::enter(terminal)?;
    terminal.write_all(QUESTIONS)?;
    let deadline = Instant::now() + PATIENCE;
    let (mut answer, mut buffer) = (vec![], [0; 256]);
    while understood(&answer).is_none() && answer.len() < LONGEST && Instant::now() < deadline {
        match terminal.read(&mut buffer) {
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    terminal.write_all(CLEAN)?;
    Ok(answer)
}

/// What a whole answer says: terminals answer in order, so the attributes come last.
fn understood(answer: &[u8]) -> Option<Abilities> {
    let answer = String::from_utf8_lossy(answer);
    let (before, rest) = answer.split_once("\x1b[?")?;
    let (attributes, _) = rest.split_once('c')?;
    Some(Abilities {
        kitty: before.contains("\x1b_Gi=31;OK"),
        sixel: attributes.split(';').skip(1).any(|code| code == SIXEL),
    })
}

/// While this lives the terminal neither shows nor withholds what it is sent, and a read ends
/// after a tenth of a second; interrupts go on to work.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn enter(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 0;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(terminal, OptionalActions::Now, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(answer: &str) -> Option<(bool, bool)> {
        understood(answer.as_bytes()).map(|found| (found.kitty, found.sixel))
    }

    #[test]
    fn terminals_are_understood() {
        let kitty = "\x1b_Gi=31;OK\x1b\\\x1b[?62;c";
        assert_eq!(abilities(kitty), Some((true, false)));
        let xterm_as_vt340 = "\x1b[?63;1;2;4;6;9;15;16;22;28c";
        assert_eq!(abilities(xterm_as_vt340), Some((false, true)));
        let foot = "\x1b[?62;4;22c";
        assert_eq!(abilities(foot), Some((false, true)));
        let konsole = "\x1b_Gi=31;OK\x1b\\\x1b[?62;1;4c";
        assert_eq!(abilities(konsole), Some((true, true)));
        let xterm = "\x1b[?64;1;2;6;9;15;16;17;18;21;22;28c";
        assert_eq!(abilities(xterm), Some((false, false)));
        let vt420_without_sixel = "\x1b[?4c";
        assert_eq!(abilities(vt420_without_sixel), Some((false, false)));
        let refused = "\x1b_Gi=31;EINVAL:no\x1b\\\x1b[?62;c";
        assert_eq!(abilities(refused), Some((false, false)));
    }

    #[test]
    fn half_an_answer_is_waited_for() {
        let whole = "\x1b_Gi=31;OK\x1b\\\x1b[?62;4c";
        for end in 0..whole.len() {
            assert_eq!(abilities(&whole[..end]), None);
        }
    }
}

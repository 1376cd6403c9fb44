use std::{
    io::{Read, Write},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{ops::cpu::Cpu, parallel::local_group};

const SECRET: &[u8] = b"known to the epoch";

/// Listeners on free ports, and the configuration of each rank.
fn epoch(size: usize, number: u64) -> Vec<(TcpListener, NetConfig)> {
    let listeners: Vec<_> = (0..size)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
    let addresses: Arc<[String]> = listeners.iter().map(address).collect();
    let config = |rank| NetConfig {
        epoch: number,
        secret: SECRET.into(),
        rank,
        addresses: addresses.clone(),
        deadline: Duration::from_secs(20),
    };
    listeners
        .into_iter()
        .enumerate()
        .map(|(rank, listener)| (listener, config(rank)))
        .collect()
}

fn form(ranks: &[(TcpListener, NetConfig)], abort: &Abort) -> Vec<NetCollective> {
    thread::scope(|scope| {
        let connect = |(listener, config)| NetCollective::connect(listener, config, abort);
        let threads: Vec<_> = ranks
            .iter()
            .map(|(listener, config)| scope.spawn(move || connect((listener, config))))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic").expect("connected"))
            .collect()
    })
}

/// What every rank gathers from every round, as bits.
fn gather<C: Collective<Cpu>>(ends: Vec<C>, rounds: &[Vec<Vec<f32>>]) -> Vec<Vec<Vec<u32>>> {
    let size = ends.len();
    thread::scope(|scope| {
        let run = |rank: usize, mut end: C| {
            scope.spawn(move || {
                let device = Cpu::new();
                let mut gathered = vec![];
                for round in rounds {
                    let len = round[rank].len();
                    let mine = device.upload(&round[rank]).expect("buffer");
                    let mut all = device.buffer(size * len + 3).expect("buffer");
                    end.gather(&device, &mine, len, &mut all)
                        .expect("all are there");
                    let values = device.read(&all, size * len).expect("values");
                    gathered.push(values.into_iter().map(f32::to_bits).collect::<Vec<_>>());
                }
                gathered
            })
        };
        let threads: Vec<_> = (0..).zip(ends).map(|(rank, end)| run(rank, end)).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Frames larger than a socket's buffers, and the bits of not-a-numbers, included.
    #[test]
    fn gathers_the_bits_that_threads_of_one_process_do(
        size in prop_oneof![Just(2usize), Just(4), Just(8)],
        lengths in prop::collection::vec(prop_oneof![0usize..50, Just(300_000usize)], 1..5),
        seed in any::<u32>(),
    ) {
        let values = |rank: usize, len: usize| -> Vec<f32> {
            let bits = |i: usize| (i as u32 * 2_654_435_761).wrapping_add(seed) ^ rank as u32;
            (0..len).map(|i| f32::from_bits(bits(i))).collect()
        };
        let rounds: Vec<Vec<Vec<f32>>> = lengths
            .iter()
            .map(|&len| (0..size).map(|rank| values(rank, len)).collect())
            .collect();
        let net = form(&epoch(size, 3), &Abort::default());
        prop_assert_eq!(gather(net, &rounds), gather(local_group(size), &rounds));
    }
}

/// Lets `intrude` talk to rank 0 while it waits for rank 1, then lets the true rank 1 connect.
fn disturb(intrude: impl FnOnce(&NetConfig)) {
    let ranks = epoch(2, 7);
    thread::scope(|scope| {
        let (listener, config) = &ranks[0];
        let waiting = scope.spawn(|| NetCollective::connect(listener, config, &Abort::default()));
        intrude(&ranks[1].1);
        let (listener, config) = &ranks[1];
        let joined = NetCollective::connect(listener, config, &Abort::default());
        let ends = vec![
            waiting.join().expect("no panic").expect("connected"),
            joined.expect("connected"),
        ];
        let rounds = [vec![vec![1.0], vec![2.0]]];
        assert_eq!(gather(ends, &rounds)[1], [[1f32.to_bits(), 2f32.to_bits()]]);
    });
}

fn refused(config: &NetConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let result = NetCollective::connect(&listener, config, &Abort::default());
    assert!(matches!(result, Err(Error::GroupLost(_))), "{result:?}");
}

#[test]
fn a_wrong_secret_is_refused() {
    disturb(|config| {
        refused(&NetConfig {
            secret: b"guessed".as_slice().into(),
            ..config.clone()
        });
    });
}

#[test]
fn another_epoch_is_refused() {
    disturb(|config| {
        refused(&NetConfig {
            epoch: 6,
            ..config.clone()
        });
    });
}

#[test]
fn another_size_or_rank_is_refused() {
    disturb(|config| {
        let mut addresses = config.addresses.to_vec();
        addresses.extend(addresses.clone());
        refused(&NetConfig {
            rank: 2,
            addresses: addresses.into(),
            ..config.clone()
        });
    });
}

#[test]
fn garbage_and_silence_are_refused() {
    disturb(|config| {
        let connect = || TcpStream::connect(&config.addresses[0]).expect("listening");
        let silent = connect();
        let mut garbage = connect();
        garbage.write_all(&[0xff; 4096]).expect("sent");
        let mut answer = vec![];
        // Closed with unread bytes: an end or a reset, but no answer.
        let _ = garbage.read_to_end(&mut answer);
        assert!(answer.is_empty());
        drop(silent);
    });
}

#[test]
fn an_end_that_cannot_prove_itself_is_not_believed() {
    let ranks = epoch(2, 7);
    let (listener, config) = &ranks[1];
    thread::scope(|scope| {
        let joining = scope.spawn(|| NetCollective::connect(listener, config, &Abort::default()));
        let (mut stream, _) = ranks[0].0.accept().expect("rank 1");
        stream.write_all(&[7; 48]).expect("sent");
        let result = joining.join().expect("no panic");
        assert!(matches!(result, Err(Error::GroupLost(_))), "{result:?}");
    });
}

/// A pair whose rank 1 is played by the test, once it is connected.
fn with_impostor(play: impl FnOnce(&mut Link) + Send) -> Result<()> {
    let ranks = epoch(2, 9);
    let mut ends = form(&ranks, &Abort::default());
    let mut impostor = ends.pop().expect("rank 1");
    let mut honest = ends.pop().expect("rank 0");
    thread::scope(|scope| {
        scope.spawn(move || {
            let link = impostor.links[0].as_mut().expect("rank 0");
            play(link);
        });
        let result = honest.exchange(&[1.0, 2.0], |_, _| ());
        drop(honest); // Ends the impostor too.
        result
    })
}

fn frame(epoch: u64, sequence: u64, len: u64) -> Vec<u8> {
    let header = [epoch, sequence, len].map(u64::to_le_bytes).concat();
    [header, vec![0; 8]].concat()
}

#[test]
fn frames_out_of_step_end_the_group() {
    let soon = || Instant::now() + Duration::from_secs(20);
    let send = |bytes: Vec<u8>| {
        with_impostor(move |link| {
            link.write(&bytes, soon()).expect("sent");
            let _ = link.read(&mut [0; 1024], soon());
        })
    };
    assert!(send(frame(9, 0, 8)).is_ok(), "the frame expected");
    let wrong = [
        ("an old epoch", frame(8, 0, 8)),
        ("a repeated or skipped frame", frame(9, 1, 8)),
        ("too short", frame(9, 0, 4)),
        ("enormous", frame(9, 0, u64::MAX)),
        ("garbage", vec![0xee; 32]),
    ];
    for (what, bytes) in wrong {
        assert!(matches!(send(bytes), Err(Error::GroupLost(_))), "{what}");
    }
}

#[test]
fn a_rank_that_goes_is_seen_by_those_that_do_not_wait() {
    let mut ends = form(&epoch(2, 1), &Abort::default());
    let mut check = || Collective::<Cpu>::check(&mut ends[0]);
    check().expect("both are there");
    check().expect("a look changes nothing");
    let mut ends = form(&epoch(2, 1), &Abort::default());
    drop(ends.pop());
    let overdue = Instant::now() + Duration::from_secs(20);
    while Collective::<Cpu>::check(&mut ends[0]).is_ok() {
        assert!(Instant::now() < overdue, "a rank that is gone");
        thread::yield_now();
    }
}

#[test]
fn a_rank_that_goes_frees_the_others_at_once() {
    let mut ends = form(&epoch(4, 1), &Abort::default());
    drop(ends.pop());
    let start = Instant::now();
    thread::scope(|scope| {
        for mut end in ends {
            // A rank whose partner of the first rounds waits for another is freed by its end.
            scope.spawn(move || end.exchange(&[1.0], |_, _| ()).expect_err("lost"));
        }
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_abort_frees_a_rank_that_waits() {
    let ranks = epoch(2, 1);
    let abort = Abort::default();
    let mut ends = form(&ranks, &abort);
    let start = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| ends[1].exchange(&[1.0], |_, _| ()));
        abort.abort();
        waiting.join().expect("no panic").expect_err("aborted");
        let (listener, config) = &ranks[0];
        NetCollective::connect(listener, config, &abort).expect_err("aborted");
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_silent_rank_is_overdue() {
    let ranks: Vec<_> = epoch(2, 1)
        .into_iter()
        .map(|(listener, config)| {
            let deadline = Duration::from_millis(300);
            (listener, NetConfig { deadline, ..config })
        })
        .collect();
    let mut ends = form(&ranks, &Abort::default());
    let error = ends[0].exchange(&[1.0], |_, _| ()).expect_err("silent");
    assert!(error.to_string().contains("overdue"), "{error}");
}

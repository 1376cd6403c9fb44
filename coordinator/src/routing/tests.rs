use proptest::prelude::*;
use xomni_cluster::record::Load;

use super::*;

const COOLDOWN: Duration = Duration::from_secs(2);

fn backbone(id: &str, epoch: u64, first_rank: u32) -> WorkerRecord {
    WorkerRecord {
        id: id.into(),
        address: format!("{id}:1"),
        protocol_version: PROTOCOL_VERSION,
        model: "m".into(),
        fingerprint: "f".into(),
        state: WorkerState::Ready,
        role: Role::Backbone {
            group: id.into(),
            first_rank,
            ranks: 1,
            group_size: 2,
            epoch,
        },
        load: Load::default(),
    }
}

fn loaded(id: &str, backlog: u64, rate: f64) -> WorkerRecord {
    let mut record = backbone(id, 1, 0);
    record.load.backlog = backlog;
    record.load.rate = rate;
    record
}

fn need(refused: &[Life]) -> Need<'_> {
    Need {
        stage: Stage::Backbone,
        model: "m",
        fingerprint: None,
        refused,
    }
}

fn table(records: &[WorkerRecord]) -> Routing {
    let mut routing = Routing::new(COOLDOWN);
    routing.update(records);
    routing
}

fn chosen(routing: &Routing, now: Instant) -> Option<String> {
    Some(routing.choose(need(&[]), now)?.0.worker)
}

#[test]
fn only_ready_leaders_of_the_model_and_fingerprint_are_chosen() {
    let now = Instant::now();
    let mut draining = backbone("draining", 1, 0);
    draining.state = WorkerState::Draining;
    let mut forming = backbone("forming", 1, 0);
    forming.state = WorkerState::Forming;
    let mut model = backbone("model", 1, 0);
    model.model = "other".into();
    let mut ancient = backbone("ancient", 1, 0);
    ancient.protocol_version = PROTOCOL_VERSION + 2;
    let mut decoder = backbone("decoder", 1, 0);
    decoder.role = Role::Decoder;
    let others = [
        draining,
        forming,
        model,
        ancient,
        decoder,
        backbone("rank1", 1, 1),
    ];
    let mut routing = table(&others);
    assert_eq!(chosen(&routing, now), None);
    assert_eq!(routing.ready(Stage::Backbone, "m"), 0);
    assert_eq!(routing.ready(Stage::Decoder, "m"), 1);

    let leader = backbone("leader", 1, 0);
    routing.update(others.iter().chain([&leader]));
    assert_eq!(chosen(&routing, now).as_deref(), Some("leader"));
    let other_numerics = Need {
        fingerprint: Some("g"),
        ..need(&[])
    };
    assert!(routing.choose(other_numerics, now).is_none());
}

#[test]
fn the_worker_that_is_soonest_through_is_chosen() {
    let now = Instant::now();
    let fast = table(&[loaded("slow", 100, 10.0), loaded("fast", 300, 100.0)]);
    assert_eq!(chosen(&fast, now).as_deref(), Some("fast"));
    // An unknown rate counts as the usual one.
    let unknown = table(&[loaded("known", 300, 100.0), loaded("unknown", 100, 0.0)]);
    assert_eq!(chosen(&unknown, now).as_deref(), Some("unknown"));
}

#[test]
fn a_failed_worker_is_avoided_until_it_has_cooled_or_has_another_epoch() {
    let now = Instant::now();
    let life = Life {
        worker: "a".into(),
        epoch: 1,
    };
    let mut routing = table(&[backbone("a", 1, 0)]);
    routing.on_failure(&life, now);
    assert_eq!(chosen(&routing, now), None);
    assert_eq!(routing.next_cooled(now), Some(now + COOLDOWN));
    assert_eq!(chosen(&routing, now + COOLDOWN).as_deref(), Some("a"));
    routing.update(&[backbone("a", 1, 0)]);
    assert_eq!(chosen(&routing, now), None, "the same record is no news");
    routing.update(&[backbone("a", 2, 0)]);
    assert_eq!(chosen(&routing, now).as_deref(), Some("a"));
    assert_eq!(routing.presence(&life), Presence::Superseded);
    routing.update(&[]);
    assert_eq!(routing.presence(&life), Presence::Absent);
}

#[derive(Debug, Clone)]
enum Action {
    Members(Vec<(u8, u64, bool)>),
    Assign(u64),
    Done(usize),
    Fail(usize),
    Wait(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let member = (0u8..4, 1u64..3, any::<bool>());
    prop_oneof![
        1 => proptest::collection::vec(member, 0..4).prop_map(Action::Members),
        6 => (1u64..50).prop_map(Action::Assign),
        3 => (0usize..8).prop_map(Action::Done),
        1 => (0usize..8).prop_map(Action::Fail),
        1 => (0u64..3).prop_map(Action::Wait),
    ]
}

proptest! {
    /// Invariants: `chosen is ready`, `chosen is not cooling`, `chosen has least work`, and `work
    /// is conserved`: what is assigned and not done is outstanding, nothing else.
    #[test]
    fn random_histories(actions in proptest::collection::vec(action(), 1..80)) {
        let mut now = Instant::now();
        let mut routing = Routing::new(COOLDOWN);
        let mut members: BTreeMap<String, WorkerRecord> = BTreeMap::new();
        let mut jobs: Vec<(Life, u64)> = vec![];
        let mut failed: HashMap<Life, Instant> = HashMap::new();
        for action in actions {
            match action {
                Action::Members(new) => {
                    members = new.into_iter().map(|(id, epoch, ready)| {
                        let mut record = backbone(&format!("w{id}"), epoch, 0);
                        record.state = if ready { WorkerState::Ready } else { WorkerState::Forming };
                        (record.id.clone(), record)
                    }).collect();
                    routing.update(members.values());
                    let ready = |life: &Life| members.get(&life.worker).is_some_and(|record|
                        record.state == WorkerState::Ready
                            && matches!(record.role, Role::Backbone { epoch, .. } if epoch == life.epoch));
                    failed.retain(|life, _| ready(life));
                }
                Action::Assign(work) => {
                    let Some((life, record)) = routing.choose(need(&[]), now) else {
                        let idle = members.values().filter(|record| record.state == WorkerState::Ready);
                        prop_assert!(idle.count() <= failed.values().filter(|t| **t > now).count());
                        continue;
                    };
                    prop_assert_eq!(record.state, WorkerState::Ready, "chosen is ready");
                    prop_assert!(failed.get(&life).is_none_or(|t| *t <= now), "chosen is not cooling");
                    for (other, _) in routing.candidates(need(&[]), now) {
                        let least = routing.outstanding(&life) <= routing.outstanding(other);
                        prop_assert!(least, "chosen has least work");
                    }
                    routing.on_assigned(&life, work);
                    jobs.push((life, work));
                }
                Action::Done(index) if index < jobs.len() => {
                    let (life, work) = jobs.swap_remove(index);
                    routing.on_done(&life, work);
                }
                Action::Fail(index) if index < jobs.len() => {
                    let (life, work) = jobs.swap_remove(index);
                    routing.on_failure(&life, now);
                    routing.on_done(&life, work);
                    if routing.presence(&life) == Presence::Present {
                        failed.insert(life, now + COOLDOWN);
                    }
                }
                Action::Done(_) | Action::Fail(_) => {}
                Action::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            for (life, _) in &jobs {
                let work: u64 = jobs.iter().filter(|(l, _)| l == life).map(|(_, work)| work).sum();
                prop_assert_eq!(routing.outstanding(life), work, "work is conserved");
            }
            prop_assert!(routing.outstanding.len() <= jobs.len(), "work is conserved");
        }
    }
}

//! Random lives of a group, and the plain life that nothing disturbs.

mod world;

use std::time::Instant;

use proptest::prelude::*;

use self::world::{Op, PARTS, World, formed, id, member};
use super::*;

fn op() -> impl Strategy<Value = Op> {
    let (process, link, back) = (0usize..2, 0usize..4, 0u64..3);
    prop_oneof![
        1 => process.clone().prop_map(Op::Look),
        1 => process.clone().prop_map(Op::Take),
        3 => (process.clone(), back.clone()).prop_map(|(p, n)| Op::Follow(p, n)),
        12 => link.clone().prop_map(Op::ToLeader),
        12 => link.clone().prop_map(Op::ToFollower),
        1 => (link.clone(), 1u64..3).prop_map(|(l, n)| Op::StaleToLeader(l, n)),
        1 => (link.clone(), 1u64..3).prop_map(|(l, n)| Op::StaleToFollower(l, n)),
        1 => link.prop_map(Op::Break),
        4 => back.clone().prop_map(Op::LeaderConnected),
        4 => process.clone().prop_map(Op::FollowerConnected),
        4 => back.clone().prop_map(Op::Plan),
        2 => back.clone().prop_map(Op::Trace),
        4 => back.prop_map(Op::LeaderDone),
        4 => (process, prop::bool::weighted(0.95)).prop_map(|(p, same)| Op::FollowerDone(p, same)),
        2 => (0u64..900).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_group_lives_or_dies_as_one(
        begun in any::<bool>(),
        ops in prop::collection::vec(op(), 1..250),
    ) {
        let mut world = if begun { formed() } else { World::new() };
        for op in &ops {
            world.run(op)?;
        }
    }
}

fn stage(world: &World) -> Stage {
    world.led[&1].epoch.stage()
}

#[test]
fn an_undisturbed_group_forms_and_runs() {
    let mut world = formed();
    for round in 0..50 {
        let ops = [
            Op::Plan(0),
            Op::ToFollower(0),
            Op::ToFollower(1),
            Op::LeaderDone(0),
            Op::FollowerDone(0, true),
            Op::FollowerDone(1, true),
            Op::ToLeader(0),
            Op::ToLeader(1),
        ];
        ops.iter().for_each(|op| world.run(op).expect("allowed"));
        let ran = world.followed.iter().flatten().map(|f| f.ran);
        assert_eq!(ran.collect::<Vec<_>>(), [round + 1; 2]);
    }
    assert_eq!(stage(&world), Stage::Ready);
}

#[test]
fn heartbeats_keep_an_idle_group() {
    let mut world = formed();
    for _ in 0..40 {
        world.run(&Op::Wait(500)).expect("allowed");
        for link in [0, 1] {
            world.run(&Op::ToLeader(link)).expect("allowed");
            world.run(&Op::ToFollower(link)).expect("allowed");
        }
    }
    assert_eq!(stage(&world), Stage::Ready);
}

#[test]
fn silence_ends_both_sides() {
    let mut world = formed();
    for _ in 0..4 {
        world.run(&Op::Wait(500)).expect("allowed");
    }
    assert_eq!(stage(&world), Stage::Lost);
    let stages = world.followed.iter().flatten().map(|f| f.epoch.stage());
    assert_eq!(stages.collect::<Vec<_>>(), [Stage::Lost; 2]);
}

#[test]
fn a_different_draw_ends_the_group() {
    let mut world = formed();
    let ops = [
        Op::Plan(0),
        Op::ToFollower(0),
        Op::FollowerDone(0, true),
        Op::ToLeader(1),
        Op::ToFollower(1),
        Op::FollowerDone(1, false),
        Op::LeaderDone(0),
        Op::ToLeader(0),
        Op::ToLeader(1),
    ];
    ops.iter().for_each(|op| world.run(op).expect("allowed"));
    assert_eq!(stage(&world), Stage::Lost);
}

/// A leader that forms, and what it answers to one join.
fn answer(spoil: impl FnOnce(&mut String, &mut Vec<u8>, &mut Member)) -> Result<(), Refusal> {
    let now = Instant::now();
    let mut leader = LeaderEpoch::new(id(5), member(PARTS[0].clone()), now);
    let mut member = member(PARTS[1].clone());
    let (mut group, mut secret) = ("g".to_owned(), id(5).secret.to_vec());
    spoil(&mut group, &mut secret, &mut member);
    let join = ToLeader::Join {
        group,
        secret,
        member,
    };
    let answer = leader.join(now, 1, 5, join);
    assert_eq!(leader.stage(), Stage::Forming);
    answer
}

#[test]
fn only_members_that_fit_join() {
    answer(|_, _, _| {}).expect("fits");
    let refusals = [
        answer(|group, _, _| group.push('x')),
        answer(|_, secret, _| secret.push(0)),
        answer(|_, secret, _| secret.clear()),
        answer(|_, _, member| member.protocol_version = 2),
        answer(|_, _, member| member.fingerprint.push('x')),
        answer(|_, _, member| member.ranks = 0..2),
        answer(|_, _, member| member.ranks = 3..5),
        answer(|_, _, member| member.ranks = 2..2),
        answer(|_, _, member| member.collective.clear()),
        answer(|_, _, member| member.blocks = 0),
    ];
    for (case, refusal) in refusals.into_iter().enumerate() {
        assert!(refusal.is_err(), "case {case}");
    }
}

#[test]
fn an_epoch_that_does_not_form_is_abandoned() {
    let now = Instant::now();
    let mut leader = LeaderEpoch::new(id(1), member(PARTS[0].clone()), now);
    leader.tick(now + FORMING - Duration::from_millis(1));
    assert_eq!(leader.stage(), Stage::Forming);
    leader.tick(now + FORMING);
    let [LeaderAction::End(reason)] = &leader.take_actions()[..] else {
        panic!("not abandoned");
    };
    assert!(reason.contains("[1, 2, 3]"), "{reason}");
}

#[test]
fn a_step_that_does_not_end_is_overdue() {
    let mut world = formed();
    world.run(&Op::Plan(0)).expect("allowed");
    world.run(&Op::LeaderDone(0)).expect("allowed");
    let led = world.led.get_mut(&1).expect("led");
    let mut now = world.now;
    while now < world.now + STEP - HEARTBEAT {
        now += HEARTBEAT;
        for peer in [0, 1] {
            led.epoch.frame(now, peer, 1, ToLeader::Heartbeat);
        }
        led.epoch.tick(now);
    }
    assert_eq!(led.epoch.stage(), Stage::Ready);
    now += HEARTBEAT;
    led.epoch.tick(now);
    assert_eq!(led.epoch.stage(), Stage::Lost);
}

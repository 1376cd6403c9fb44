//! Requests whose outputs do not fit all at once.

use super::*;

/// Runs everything; the output of each draw in order, by request.
fn draws(scheduler: &mut Scheduler, device: &mut Device) -> Vec<(RequestId, usize)> {
    let mut order = vec![];
    while let Some(step) = scheduler.plan(Instant::now()) {
        let drawn = device.run(&step, scheduler.config().block_size);
        scheduler.on_done(step.id, &drawn).expect("in order");
        order.extend(scheduler.take_events().into_iter().filter_map(|event| {
            let Event::Token {
                request, output, ..
            } = event
            else {
                return None;
            };
            Some((request, output))
        }));
    }
    order
}

#[test]
fn outputs_that_do_not_fit_together_run_one_after_the_other() {
    // 13 + 3 positions: 4 blocks for one output, 5 for two that share the prompt's first 3.
    for (blocks, at_once) in [(4, 1), (5, 2), (6, 3), (7, 3)] {
        let mut scheduler = Scheduler::new(SchedulerConfig { blocks, ..config() });
        scheduler
            .submit(request(1, 13, 3, 3))
            .expect("one output fits");
        let step = scheduler.plan(Instant::now()).expect("work");
        assert_eq!(step.admissions.len(), at_once, "{blocks} blocks");
        assert_eq!(scheduler.available().0, blocks - 3 - at_once);
        scheduler.cancel(1);
        scheduler.submit(request(2, 13, 3, 3)).expect("as before");
        let mut device = Device::default();
        let drawn = device.run(&step, 4);
        scheduler.on_done(step.id, &drawn).expect("in order");
        assert_eq!(draws(&mut scheduler, &mut device).len(), 9);
        assert_eq!(scheduler.available(), (blocks, 6));
    }
    let mut few = Scheduler::new(SchedulerConfig {
        blocks: 3,
        ..config()
    });
    match few.submit(request(1, 13, 1, 3)) {
        Err(crate::Error::BadInput {
            field,
            limit,
            value,
        }) => {
            assert_eq!(field, "size");
            assert!(limit.contains("3 blocks of 4"), "{limit}");
            assert!(
                value.contains("4 blocks") && value.contains("16 positions"),
                "{value}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_that_waits_is_never_overtaken() {
    let mut device = Device::default();
    let mut scheduler = Scheduler::new(SchedulerConfig {
        blocks: 5,
        ..config()
    });
    scheduler.submit(request(1, 13, 3, 3)).expect("in parts");
    // The second would fit beside the third output of the first.
    scheduler.submit(request(2, 2, 1, 2)).expect("fits");
    let order = draws(&mut scheduler, &mut device);
    let first = |wanted| order.iter().position(|drawn| *drawn == wanted);
    assert!(first((1, 2)) < first((2, 0)), "{order:?}");

    scheduler.submit(request(3, 13, 3, 3)).expect("in parts");
    let step = scheduler.plan(Instant::now()).expect("work");
    let drawn = device.run(&step, 4);
    scheduler.on_done(step.id, &drawn).expect("in order");
    let urgent = Request {
        priority: -1,
        ..request(4, 17, 1, 3)
    };
    scheduler.submit(urgent).expect("needs all blocks");
    let order = draws(&mut scheduler, &mut device);
    let first = |wanted| order.iter().position(|drawn| *drawn == wanted);
    assert!(first((3, 1)) < first((4, 0)), "what runs goes on");
    assert!(first((4, 0)) < first((3, 2)), "what waits does not");
}

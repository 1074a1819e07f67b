//! Single frames through the steering program: what it would do, and what it really does.

use aya::programs::{
    ProgramError, SchedClassifier, TestRun, TestRunAttrs, TestRunOptions, TestRunResult, Xdp,
};
use aya::util::KernelVersion;

use super::{Judgement, Steering, SteeringError, reason};

/// The first kernel that carries out what the program decides about a frame of ours.
const LIVE_FRAMES_SINCE: KernelVersion = KernelVersion::new(5, 18, 0);

impl Steering {
    /// What the program does with a frame that arrives on a queue of an interface of the calling
    /// thread's network namespace. The counters count it, nothing is sent. The frame has at least 14
    /// bytes.
    pub fn judge(
        &self,
        ifindex: u32,
        queue: u32,
        frame: &[u8],
    ) -> Result<Judgement, SteeringError> {
        let result = self.test_run(ifindex, queue, frame, TestRunAttrs::new())?;
        match result.return_value {
            1 => Ok(Judgement::Drop),
            2 => Ok(Judgement::Pass),
            4 => Ok(Judgement::Engine),
            other => Err(SteeringError::Judge(format!("action {other}"))),
        }
    }

    /// Lets a frame arrive on queue 0 of an interface of the calling thread's network namespace:
    /// what the program decides is really done, and has been done on return. The frame has at least
    /// 14 bytes.
    ///
    /// # Errors
    /// The kernel is older than 5.18, or refuses.
    pub fn deliver(&self, ifindex: u32, frame: &[u8]) -> Result<(), SteeringError> {
        if !KernelVersion::current().is_ok_and(|version| version >= LIVE_FRAMES_SINCE) {
            let why = "Linux 5.18 or later is needed";
            return Err(SteeringError::Judge(why.to_owned()));
        }
        let live = TestRunAttrs::new().xdp_live_frames(1);
        self.test_run(ifindex, 0, frame, live).map(drop)
    }

    /// What the program in tc does with a frame that arrives on an interface of the calling thread's
    /// network namespace. The counters count it, nothing is sent. The frame has at least 14 bytes.
    pub fn judge_tc(&self, ifindex: u32, frame: &[u8]) -> Result<Judgement, SteeringError> {
        let judge = |why: String| SteeringError::Judge(why);
        let program = self.ebpf.program(super::tc::STEER);
        let program: &SchedClassifier = program
            .ok_or_else(|| judge("the program is missing".to_owned()))?
            .try_into()
            .map_err(|error: ProgramError| judge(reason(&error)))?;
        // struct __sk_buff: the ifindex is its eleventh word.
        let mut context = [0_u32; 48];
        context[10] = ifindex;
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = program
            .test_run(options)
            .map_err(|error| judge(reason(&error)))?;
        match result.return_value as i32 {
            -1 => Ok(Judgement::Pass),
            2 => Ok(Judgement::Drop),
            7 => Ok(Judgement::Engine),
            other => Err(judge(format!("action {other}"))),
        }
    }

    fn test_run(
        &self,
        ifindex: u32,
        queue: u32,
        frame: &[u8],
        attrs: TestRunAttrs,
    ) -> Result<TestRunResult, SteeringError> {
        let program = self.ebpf.program("egret_steer");
        let program: &Xdp = program
            .ok_or_else(|| SteeringError::Judge("the program is missing".to_owned()))?
            .try_into()
            .map_err(|error: ProgramError| SteeringError::Judge(reason(&error)))?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = [0, frame.len() as u32, 0, ifindex, queue, 0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs,
            ..TestRunOptions::default()
        };
        program
            .test_run(options)
            .map_err(|error| SteeringError::Judge(reason(&error)))
    }
}

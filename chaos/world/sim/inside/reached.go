package inside

import (
	"slices"

	"github.com/balsa-run/balsa/cluster"
)

// States that are worth a visit, by the names that World.Reached knows. A
// campaign that never comes to one of them has tested less than it says.
const (
	ReachedElection           = "leader elected"
	ReachedSuffix             = "conflicting suffix truncated"
	ReachedSnapshot           = "snapshot taken"
	ReachedInstall            = "snapshot installed"
	ReachedInstallCut         = "snapshot install cut short"
	ReachedDeposedWithEntries = "leader deposed with uncommitted entries"
	ReachedKilledWithEntries  = "leader killed with uncommitted entries"
	ReachedNoQuorum           = "leader without a quorum stepped down"
	ReachedPreVoteRefused     = "pre-vote refused: there is a leader"
	ReachedLateAnswer         = "late answer of a heartbeat not counted"
	ReachedStalledDisk        = "stalled disk noticed"
	ReachedGaveUp             = "server gave up over its disk"
	ReachedWaitedForRoom      = "server waited for room"
	ReachedCrashAtWrite       = "crash at a chosen write"
	ReachedVoteThenCrash      = "voted, then crashed"
	ReachedTornAppend         = "append torn"
	ReachedSnapshotDamaged    = "damaged snapshot noticed"
	ReachedReset              = "connections broken"
	ReachedTransfer           = "leadership transferred"
	ReachedAmnesiac           = "server without memory kept out"
	ReachedReplaced           = "server replaced under a new id"
	ReachedAdded              = "server added"
	ReachedRemoved            = "server removed"
	ReachedChangedInPartition = "membership changed in a partition"
	ReachedCompacted          = "history compacted"
	ReachedUpgraded           = "versions mixed"
	ReachedClockWrong         = "clock wrong"
	ReachedPowerLost          = "all power lost"
	// ReachedResumedAcross is noted by those who watch, with World.Reach.
	ReachedResumedAcross = "watch resumed across compaction"
)

// States are all names of states, in a fixed order.
func States() []string {
	return []string{
		ReachedElection, ReachedSuffix, ReachedSnapshot, ReachedInstall, ReachedInstallCut,
		ReachedDeposedWithEntries, ReachedKilledWithEntries, ReachedNoQuorum, ReachedPreVoteRefused, ReachedLateAnswer,
		ReachedStalledDisk, ReachedGaveUp, ReachedWaitedForRoom, ReachedCrashAtWrite, ReachedVoteThenCrash, ReachedTornAppend,
		ReachedSnapshotDamaged, ReachedReset, ReachedTransfer, ReachedAmnesiac, ReachedReplaced, ReachedAdded, ReachedRemoved,
		ReachedChangedInPartition, ReachedCompacted, ReachedUpgraded, ReachedClockWrong, ReachedPowerLost, ReachedResumedAcross,
	}
}

// logged are the states that a server's own log tells of.
func logged(state string) (messages []string) {
	switch state {
	case ReachedElection:
		return []string{"election won"}
	case ReachedSuffix:
		return []string{"clearing log suffix"}
	case ReachedSnapshot:
		return []string{"snapshot complete up to"}
	case ReachedInstall:
		return []string{"Installed remote snapshot"}
	case ReachedInstallCut:
		return []string{"failed to install snapshot", "failed to copy snapshot", "failed to receive whole snapshot"}
	case ReachedNoQuorum:
		return []string{"failed to contact quorum of nodes, stepping down"}
	case ReachedPreVoteRefused:
		return []string{"rejecting pre-vote request since we have a leader"}
	case ReachedStalledDisk:
		return []string{"own disk"}
	case ReachedWaitedForRoom:
		return []string{"disk full: not voting until there is room"}
	case ReachedSnapshotDamaged:
		return []string{"failed to open snapshot"}
	}
	return nil
}

// Reached is how often the run was in a state, by what really happened: what
// servers logged and counted, and what faults did. It panics for a name that is
// not in States.
func (w *World) Reached(state string) int {
	mustKnow(state)
	w.mu.Lock()
	n := w.reached[state]
	w.mu.Unlock()
	for _, message := range logged(state) {
		n += w.Trace.Seen(message)
	}
	return n
}

// Reach notes that the run is in a state.
func (w *World) Reach(state string) {
	mustKnow(state)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached[state]++
}

func mustKnow(state string) {
	if !slices.Contains(States(), state) {
		panic("inside: no state " + state)
	}
}

// metrics hears what the servers count.
type metrics struct{ world *World }

// metricLate is counted by cluster when an answer comes too late to prove anything.
const metricLate = "cluster_late_heartbeat_answers"

func (m *metrics) Add(name string, _ float64, _ ...cluster.Label) {
	if name == metricLate {
		m.world.Reach(ReachedLateAnswer)
	}
}

func (*metrics) Set(string, float64, ...cluster.Label)     {}
func (*metrics) Observe(string, float64, ...cluster.Label) {}

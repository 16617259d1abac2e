package node_test

import (
	"strings"
	"testing"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// TestEphemeralContainersSayTheirLastWord has two of them fail: the policy of one
// makes its log the message.
func TestEphemeralContainersSayTheirLastWord(t *testing.T) {
	onNode(t, func(l *lab) {
		l.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		live := object.Clone(l.server.pod("a"))
		for name, policy := range map[string]string{"log": object.MessageFallbackToLogsOnError, "file": object.MessageFile} {
			live.Spec.EphemeralContainers = append(live.Spec.EphemeralContainers, &balsav1.EphemeralContainer{
				Name: name, Image: "app:1", Command: []string{"/bin/sim", "lines=3", "exit=1"}, TerminationMessagePolicy: policy,
			})
		}
		l.put(live)
		ended := func(name string) bool { return l.statusOf("a", name).GetState().GetTerminated().GetExitCode() == 1 }
		l.within(5*time.Second, "both have ended", func() bool { return ended("log") && ended("file") })
		if m := l.statusOf("a", "log").GetState().GetTerminated().GetMessage(); !strings.HasSuffix(m, "line 2\n") {
			l.Errorf("FallbackToLogsOnError says %q", m)
		}
		if m := l.statusOf("a", "file").GetState().GetTerminated().GetMessage(); m != "" {
			l.Errorf("File says %q", m)
		}
	})
}

package daemon

import (
	"log/slog"
	"os"
	"strconv"
)

// What the kernel's memory killer shall think of agents, with their shims, and of
// servers: that everything else goes first. The systemd units say the same.
const (
	agentOOMScore  = -999
	serverOOMScore = -900
	oomScoreFile   = "/proc/self/oom_score_adj"
)

// protect asks the kernel to spare this process. It may not be allowed to, without
// CAP_SYS_RESOURCE; then it stays as it was started. Containers get scores of
// their own.
func protect(score int, log *slog.Logger) {
	text, err := firstLine(oomScoreFile)
	if now, bad := strconv.Atoi(text); err == nil && bad == nil && now <= score {
		return
	}
	if err := os.WriteFile(oomScoreFile, []byte(strconv.Itoa(score)), 0); err != nil {
		log.Debug("the kernel does not spare this process when memory runs out", "error", err)
	}
}

// Package compat stands in for the package of this name that go-metrics 0.7.0 no
// longer has and raft-wal 0.4.2 still imports. It has what raft-wal's collector of
// metrics needs in order to compile, and no more.
package compat

import metrics "github.com/hashicorp/go-metrics"

// The types that raft-wal names.
type (
	Metrics = metrics.Metrics
	Label   = metrics.Label
)

// Default is the process's own.
func Default() *Metrics { return metrics.Default() }

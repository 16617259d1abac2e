package bench

// PodSuite is every measure of pods, in the order of the document. A quick one
// takes few values.
func PodSuite(ground *PodGround, quick bool) []Measure {
	of := func(full, few int) int {
		if quick {
			return few
		}
		return full
	}
	var all []Measure
	all = append(all, ground.podStarts(of(100, 5), of(5, 1), of(3, 1))...)
	all = append(all, ground.density(of(idleWindows, 1))...)
	all = append(all, ground.nodeStarts(of(5, 1))...)
	all = append(all, ground.execs(of(5, 1))...)
	return append(all, ground.pulls(of(3, 1))...)
}

// PodPreface says in the document what is compared with what.
func PodPreface(peers string) string {
	return "Measures that begin with `containerd-` are of Debian's containerd and runc (" + peers + ") in the same run, on the same host of the lab,\n" +
		"by containerd's Go client. What they do not do: a pod network (their network namespace is empty), probes, an API with raft below it, a\n" +
		"scheduler, reports of what became of a pod. What they share with `node-start` and `exec-node` is a root file system by overlayfs,\n" +
		"namespaces, a seccomp filter, a shim, runc or libcontainer, and a log file. Rounds alternate between the two."
}

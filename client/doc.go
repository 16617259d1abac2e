// Package client is the Go SDK of Balsa: typed reads, writes, watches and waits
// over the cluster's API, for programs outside and for the agent inside.
//
//	c, err := client.FromFile("admin.yaml")
//	pods, err := client.List[*balsav1.Pod](ctx, c, "default", client.ListOptions{})
//
// A Client knows all servers, holds to one and moves on when that one does not
// answer; its writes go to the one that leads. It learns of servers from their
// answers, so one address that works is enough to begin with. It repeats what is safe to repeat, up to Config.RetryFor: every read;
// a write that was surely not applied; and a write whose fate is unknown only
// when doing it twice is doing it once (Apply, or a precondition in the
// request). Everything else comes back as an error that says which it is: see
// Applied, IsConflict, IsNotFound.
//
// It refuses to be a cache: the servers hold one, and a Watch resumes from the
// revision where it broke off.
package client

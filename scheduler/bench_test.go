package scheduler

import (
	"fmt"
	"testing"
	"time"
)

// How long does a plan take for a thousand nodes when five thousand pods wait at
// once: of ten owners, each of an owner of its own, spread over zones, and when
// none of them fits?
func BenchmarkPlan(b *testing.B) {
	for _, c := range []struct {
		name   string
		owners int
		change func(*Pod)
	}{
		{"10 owners", 10, func(*Pod) {}},
		{"5000 owners", 5000, func(*Pod) {}},
		{"spread over zones", 10, func(p *Pod) {
			p.Spread = []Constraint{{MaxSkew: 1, TopologyKey: "zone", Hard: true, Selector: labelSelector{"app", p.Owner}}}
		}},
		{"none fits", 10, func(p *Pod) { p.Requests.MilliCPU = 1 << 40 }},
	} {
		b.Run(c.name, func(b *testing.B) {
			v := bigView(1000, 5000, c.owners, c.change)
			b.ReportAllocs()
			for b.Loop() {
				Plan(v)
			}
		})
	}
}

func bigView(nodes, pods, owners int, change func(*Pod)) (v View) {
	for i := range nodes {
		v.Nodes = append(v.Nodes, Node{
			Name: fmt.Sprintf("n%04d", i), Ready: true, Labels: map[string]string{"zone": fmt.Sprint(i % 3)},
			Allocatable: Resources{MilliCPU: 8000, Memory: 32 << 30, Pods: 110},
		})
	}
	for i := range pods {
		owner := fmt.Sprintf("o%d", i%owners)
		p := Pod{
			Namespace: "default", Name: fmt.Sprintf("p%05d", i), UID: fmt.Sprint(i), Owner: owner,
			Labels: map[string]string{"app": owner}, Requests: Resources{MilliCPU: 100, Memory: 128 << 20, Pods: 1}, Created: time.Unix(int64(i), 0),
		}
		change(&p)
		v.Pending = append(v.Pending, p)
	}
	return v
}

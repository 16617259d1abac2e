package node

import (
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/object"
)

// sources collects the objects that a pod refers to: ConfigMaps and Secrets of
// variables, volumes and pulls, claims, and the volumes that they are bound to.
func (s *set) sources(p *balsav1.Pod) pod.Sources {
	g := &gathering{s: s, namespace: p.GetMetadata().GetNamespace(), out: pod.Sources{
		ConfigMaps: map[string]*balsav1.ConfigMap{}, Secrets: map[string]*balsav1.Secret{},
		Claims: map[string]*balsav1.PersistentVolumeClaim{}, Volumes: map[string]*balsav1.PersistentVolume{},
	}}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, c := range object.AllContainers(p.GetSpec()) {
		g.environmentLocked(c)
	}
	for _, v := range p.GetSpec().GetVolumes() {
		g.volumeLocked(v)
	}
	for _, ref := range p.GetSpec().GetImagePullSecrets() {
		g.secretLocked(ref.GetName())
	}
	return g.out
}

type gathering struct {
	s         *set
	namespace string
	out       pod.Sources
}

func (g *gathering) configMapLocked(name string) {
	if m, ok := g.s.objects["configmaps/"+g.namespace+"/"+name].(*balsav1.ConfigMap); ok {
		g.out.ConfigMaps[name] = m
	}
}

func (g *gathering) secretLocked(name string) {
	if m, ok := g.s.objects["secrets/"+g.namespace+"/"+name].(*balsav1.Secret); ok {
		g.out.Secrets[name] = m
	}
}

func (g *gathering) environmentLocked(c *balsav1.Container) {
	for _, from := range c.GetEnvFrom() {
		g.configMapLocked(from.GetConfigMapRef().GetName())
		g.secretLocked(from.GetSecretRef().GetName())
	}
	for _, env := range c.GetEnv() {
		g.configMapLocked(env.GetValueFrom().GetConfigMapKeyRef().GetName())
		g.secretLocked(env.GetValueFrom().GetSecretKeyRef().GetName())
	}
}

func (g *gathering) volumeLocked(v *balsav1.Volume) {
	g.configMapLocked(v.GetConfigMap().GetName())
	g.secretLocked(v.GetSecret().GetSecretName())
	for _, from := range v.GetProjected().GetSources() {
		g.configMapLocked(from.GetConfigMap().GetName())
		g.secretLocked(from.GetSecret().GetName())
	}
	name := v.GetPersistentVolumeClaim().GetClaimName()
	claim, ok := g.s.objects["persistentvolumeclaims/"+g.namespace+"/"+name].(*balsav1.PersistentVolumeClaim)
	if !ok {
		return
	}
	g.out.Claims[name] = claim
	volume := claim.GetSpec().GetVolumeName()
	if pv, ok := g.s.objects["persistentvolumes/"+volume].(*balsav1.PersistentVolume); ok {
		g.out.Volumes[volume] = pv
	}
}

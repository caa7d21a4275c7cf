{{- define "echolm.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "echolm.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "echolm.redisSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: redis
{{- end -}}

{{- define "echolm.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "echolm.image" -}}
{{- $tags := dict "local" "cpu" "vllm" "vllm" "tensorrt_llm" "trtllm" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (get $tags .Values.profile)) -}}
{{- end -}}

{{- define "echolm.onGpus" -}}
{{- if ne .Values.profile "local" }}true{{ end -}}
{{- end -}}

{{- define "echolm.secretName" -}}
{{- .Values.signingKey.existingSecret | default (include "echolm.fullname" .) -}}
{{- end -}}

{{- define "echolm.keysSecretName" -}}
{{- .Values.apiKeys.existingSecret | default (include "echolm.fullname" .) -}}
{{- end -}}

{{- define "echolm.redisSecretName" -}}
{{- .Values.redis.existingSecret | default (include "echolm.fullname" .) -}}
{{- end -}}

{{/* Checks that a JSON schema cannot express. */}}
{{- define "echolm.check" -}}
{{- $v := .Values -}}
{{- if and (not $v.signingKey.existingSecret) (not $v.signingKey.value) -}}
{{- fail "signingKey: expected existingSecret or value, got neither; make one: --set signingKey.value=$(openssl rand -hex 32)" -}}
{{- end -}}
{{- if and (not $v.apiKeys.existingSecret) (not $v.apiKeys.value) -}}
{{- fail "apiKeys: expected existingSecret or value, got neither; make a file of keys: ECHOLM_GATEWAY__KEYS_PATH=keys.json echolm keys add; and give it: --set-file apiKeys.value=keys.json" -}}
{{- end -}}
{{- if and $v.redis.enabled (not $v.redis.existingSecret) (not $v.redis.password) -}}
{{- fail "redis: expected existingSecret or password, got neither; make one: --set redis.password=$(openssl rand -hex 32)" -}}
{{- end -}}
{{- if and $v.redis.enabled $v.eventLog.existingSecret -}}
{{- fail "redis.enabled and eventLog.existingSecret: expected one of them, got both" -}}
{{- end -}}
{{- if or (gt (int $v.replicas) 1) $v.autoscaling.enabled -}}
{{- if not $v.milvus.uri -}}
{{- fail "milvus.uri: expected a Milvus server for several replicas, got none: they share the examples" -}}
{{- end -}}
{{- if not (or $v.redis.enabled $v.eventLog.existingSecret) -}}
{{- fail "eventLog.existingSecret: expected a Redis for several replicas, got none: they share what is learnt; or set redis.enabled" -}}
{{- end -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling: expected minReplicas of at most maxReplicas" -}}
{{- end -}}
{{- if include "echolm.onGpus" . -}}
{{- if not (and $v.models.small $v.models.large) -}}
{{- fail (printf "models.small, models.large: expected the checkpoints of profile %s, got none" $v.profile) -}}
{{- end -}}
{{- if $v.config -}}
{{- fail "config: expected none on GPUs, where `echolm build` writes echolm.toml; use settings" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The environment of a container of EchoLM. */}}
{{- define "echolm.env" -}}
- name: ECHOLM_FEEDBACK__SIGNING_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "echolm.secretName" . }}
      key: {{ .Values.signingKey.key }}
- name: ECHOLM_ROUTING__LOAD_TABLE
  value: /dev/shm
- name: ECHOLM_GATEWAY__KEYS_PATH
  value: /etc/echolm-keys/{{ .Values.apiKeys.key }}
{{- if .Values.milvus.uri }}
- name: ECHOLM_RETRIEVAL__MILVUS_URI
  value: {{ .Values.milvus.uri | quote }}
{{- end }}
{{- if .Values.milvus.existingSecret }}
- name: ECHOLM_RETRIEVAL__MILVUS_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.milvus.existingSecret }}
      key: {{ .Values.milvus.key }}
{{- end }}
{{- if .Values.eventLog.existingSecret }}
- name: ECHOLM_EVENT_LOG
  valueFrom:
    secretKeyRef:
      name: {{ .Values.eventLog.existingSecret }}
      key: {{ .Values.eventLog.key }}
{{- else if .Values.redis.enabled }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "echolm.redisSecretName" . }}
      key: {{ .Values.redis.key }}
- name: ECHOLM_EVENT_LOG
  value: redis://:$(REDIS_PASSWORD)@{{ include "echolm.fullname" . }}-redis:6379/0
{{- end }}
{{- if .Values.config }}
- name: ECHOLM_CONFIG
  value: /etc/echolm/echolm.toml
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ printf "ECHOLM_%s" $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

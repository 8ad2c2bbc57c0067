<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">${'New policy' if policy is None else 'Edit a policy'}</%def>
<article class="narrow">
<h1>${'New policy' if policy is None else f'Edit {shown.named(policy.display_name, policy.id)}'}</h1>
% if problems:
<p role="alert">${problems.get('') or 'Something below is not right.'}</p>
% endif
<form method="post" action="${base}/policies${f'/{policy.id}/edit' if policy is not None else ''}" class="fields">
% if policy is not None:
<input type="hidden" name="seen" value="${form.state(policy)}">
% endif
% if anywhere:
<label>Project
<input name="project" value="${project}" maxlength="255" required></label>
% endif
% for title, fields in form.GROUPS:
<fieldset>
<legend>${title}</legend>
% for field in fields:
${entry(field)}
% endfor
</fieldset>
% if title == 'When':
<fieldset>
<legend>Which volumes</legend>
% if problems.get('selection'):
<small class="problem">${problems['selection']}</small>
% endif
<label><input type="radio" name="selection" value="all"${' checked' if given.get('selection', 'all') == 'all' else '' | n}> all of the project</label>
% for field, words in ((form.VOLUMES, 'these'), (form.METADATA, 'those that have')):
<label><input type="radio" name="selection" value="${field.name}"${' checked' if given.get('selection') == field.name else '' | n}> ${words}</label>
${entry(field)}
% endfor
% if volumes:
<details><summary>Volumes of the project, and their ids</summary>
<ul>
% for volume_id, name in volumes.items():
<li>${shown.named(name, volume_id)} <code>${volume_id}</code></li>
% endfor
</ul></details>
% endif
</fieldset>
% endif
% endfor
<button>${'Make it' if policy is None else 'Change it'}</button>
<a class="button quiet" href="${base}/policies${f'/{policy.id}' if policy is not None else ''}">Back</a>
</form>
<% wanted = form.body(given, policy) %>\
% if policy is None:
${parts.same(f'POST /v3/{project}/backup-policies', form.written(wanted), form.command(wanted, f'backupfw policy create --project {project}'))}
% else:
${parts.same(f'PUT /v3/{project}/backup-policies/{policy.id}', form.written(wanted), form.command(wanted, f'backupfw policy set {policy.id}'))}
% endif
</article>

<%def name="entry(field)">
<% problem = problems.get(field.key) %>\
% if field.kind == 'flag':
<label><input type="checkbox" name="${field.key}"${' checked' if given.get(field.key) else '' | n}> ${field.label}</label>
% elif field.kind == 'lines':
<label>${field.label}
<textarea name="${field.key}" rows="3" maxlength="4096"${' aria-invalid="true"' if problem else '' | n} aria-describedby="about-${field.key}">${given.get(field.key, '')}</textarea></label>
% elif field.kind == 'choice':
<% chosen = given.get(field.key, '') %>\
<label>${field.label}
<select name="${field.key}"${' aria-invalid="true"' if problem else '' | n} aria-describedby="about-${field.key}">
<option value="">none</option>
% for name in choices + ([chosen] if chosen and chosen not in choices else []):
<option${' selected' if name == chosen else '' | n}>${name}</option>
% endfor
</select></label>
% else:
<label>${field.label}
<input name="${field.key}" value="${given.get(field.key, '')}" maxlength="255"${' inputmode="numeric"' if field.kind == 'number' else '' | n}${' aria-invalid="true"' if problem else '' | n} aria-describedby="about-${field.key}"></label>
% endif
<small id="about-${field.key}">${field.hint}
% if problem:
<span class="problem">${problem}</span>
% endif
</small>
</%def>
